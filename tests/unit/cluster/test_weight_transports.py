"""Weights on their way to engines that restart, lag behind, stand still, live elsewhere, refuse, lie or die; on
stand-ins for the handles of the engines and for the ranks of the learner."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from actors.config import SyncConfig
from actors.weights.update import (
    TensorRecord,
    WeightGroup,
    WeightGroupError,
    WeightLoadError,
    WeightReceipt,
    WeightUpdate,
    WeightVersionError,
)
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import ActorLost, SupervisedActor
from cluster.weights.sync import Probe, WeightSync, WeightSyncError
from cluster.weights.transports import Collective, HostMemory
from learner.rounding import TextScores

TENSOR = TensorRecord(name="a", dtype="float32", shape=(1,), num_bytes=4, checksum=5)
PROBE = (7, 8, 9)
LOGPROBS = (-1.0, -2.0)
BOTH = pytest.mark.parametrize("way", ["memory", "collective"])


class FakeMethod:
    """`handle.method.remote(...)` of a coroutine function."""

    def __init__(self, call) -> None:
        self.remote = call


class FakeEngine:
    """Writes down what it loads; `replies` holds receipts or errors that come first."""

    def __init__(self, *replies, node="host-0", logprobs=LOGPROBS, decoding_gap=0.0) -> None:
        self.replies = list(replies)
        self.node = node
        self.logprobs = logprobs
        self.gap = decoding_gap
        self.pid = 1
        self.dies_at_ready = False
        self.gate: asyncio.Event | None = None
        self.loaded = []
        for name in ("node_id", "load_weights", "score", "decoding_gap", "ready"):
            setattr(self, name, FakeMethod(getattr(self, f"_{name}")))

    async def _ready(self):
        if self.dies_at_ready:
            self.dies_at_ready = False
            self.pid += 1
            raise died()
        return self.pid

    async def _node_id(self):
        return self.node

    async def _load_weights(self, update):
        self.loaded.append(update)
        if self.gate is not None:
            await self.gate.wait()
        reply = self.replies.pop(0) if self.replies else receipt(update.version)
        if isinstance(reply, Exception):
            raise reply
        return replace(reply, num_travelling_bytes=update.num_travelling_bytes)

    async def _score(self, token_ids):
        assert token_ids == PROBE
        return self.logprobs

    async def _decoding_gap(self, token_ids):
        assert token_ids == PROBE
        return self.gap

    @property
    def versions(self):
        return [update.version for update in self.loaded]

    @property
    def sources(self):
        """What came: a path, a group, or the values themselves."""
        return [update.source if isinstance(update.source, str) else type(update.source) for update in self.loaded]


class FakeLearner:
    """The ranks of the learner; writes down its calls."""

    def __init__(self) -> None:
        self.calls = []
        self.broken: Exception | None = None
        self.groups = []
        """(receivers, epoch, timeout) of each group."""
        self.is_free = asyncio.Event()
        self.is_free.set()

    async def node_id(self):
        return "host-0"

    async def publish_weights(self, version):
        self.calls.append(f"publish {version}")
        await asyncio.sleep(0.01)
        if self.broken is not None:
            raise self.broken
        return WeightUpdate(version=version, source="path", tensors=(TENSOR,))

    async def put_weights(self, version, *, delta, receiver="the engines"):
        await self.is_free.wait()
        self.calls.append(f"put {version}, delta={delta}")
        values = (np.zeros(1 if delta else 4, np.uint8),)
        return WeightUpdate(version=version, source=values, tensors=(TENSOR,))

    async def open_weight_group(self, version, *, num_receivers, epoch, timeout_s):
        self.groups.append((num_receivers, epoch, timeout_s))
        group = WeightGroup(host="h", port=1, world_size=1 + num_receivers, epoch=epoch, timeout_s=timeout_s)
        announced = replace(TENSOR, checksum=None)
        return WeightUpdate(version=version, source=group, tensors=(announced,), first_rank=1)

    async def score(self, token_ids):
        assert token_ids == PROBE
        self.calls.append("score")
        return TextScores(logprobs=LOGPROBS, scale=100.0)


class Setting:
    """Weight updates of these engines by one of the two transports, with supervision as in a run."""

    def __init__(self, way, *engines, workers_per_engine=1, overlaps=False, probe_every=20, **config) -> None:
        self.log = []
        self.learner = FakeLearner()
        self.actors = [
            SupervisedActor(
                f"rollout-{i}",
                engine,
                startup_timeout_s=0.2,
                on_fault=lambda **fields: self.log.append(fields["action"]),
                after_restart=lambda name, handle: self.sync.bring_up_to_date(name, handle),
            )
            for i, engine in enumerate(engines)
        ]
        rollouts = RayRollouts(self.actors, [], on_fault=lambda **fields: None)
        settings = SyncConfig(**config)
        self.transport = (
            HostMemory(rollouts, self.learner, settings)
            if way == "memory"
            else Collective(rollouts, self.learner, settings, workers_per_engine=workers_per_engine)
        )
        probe = Probe(
            self.learner,
            rollouts,
            token_ids=PROBE,
            every=probe_every,
            dtypes=("fp32",),
            timeout_s=settings.timeout_s,
        )
        self.sync = WeightSync(self.transport, probe, overlaps=overlaps)


def run(setting, *versions):
    """The report of every update."""

    async def send():
        reports = []
        for version in versions:
            await setting.sync.send(version)
            reports.append(setting.sync.last)
        return reports

    return asyncio.run(send())


def receipt(version, tensor=TENSOR):
    return WeightReceipt(version=version, tensors=(tensor,), pause_s=0.1)


def died():
    return ActorUnavailableError("killed", actor_id=None)


# either way


@BOTH
def test_the_report_sums_up_what_was_sent_and_what_came_of_it(way):
    slow = replace(receipt(1), pause_s=0.4)
    (report,) = run(Setting(way, FakeEngine(), FakeEngine(slow)), 1)
    assert (report.version, report.num_tensors, report.num_bytes, report.num_engines) == (1, 1, 4, 2)
    assert (report.pause_s, report.num_travelling_bytes) == (0.4, 0)
    assert report.seconds == report.gather_s + report.deliver_s


@BOTH
def test_the_first_update_and_every_third_one_are_probed(way):
    reports = run(Setting(way, FakeEngine(), probe_every=3), 5, 6, 7, 8, 9)
    assert [report.probe_gap_max is not None for report in reports] == [True, False, False, True, False]


@BOTH
def test_a_probe_gap_is_reported_and_one_that_is_too_large_stops_the_run(way):
    (report,) = run(Setting(way, FakeEngine(logprobs=(-1.0, -2.004)), FakeEngine()), 1)
    assert report.probe_gap_max == pytest.approx(0.002)
    with pytest.raises(WeightSyncError, match="rollout-1: after weight update 1"):
        run(Setting(way, FakeEngine(), FakeEngine(logprobs=(-1.0, -3.0))), 1)


@BOTH
@pytest.mark.parametrize("gap", [0.02, float("nan")])
def test_an_engine_that_samples_with_other_log_probabilities_than_it_scores_stops_the_run(way, gap):
    (report,) = run(Setting(way, FakeEngine(decoding_gap=0.004), FakeEngine()), 1)
    assert report.probe_gap_max == 0.004
    with pytest.raises(WeightSyncError, match="rollout-1: after weight update 1 the tokens that it samples have other"):
        run(Setting(way, FakeEngine(), FakeEngine(decoding_gap=gap)), 1)


@BOTH
def test_an_engine_that_loaded_something_else_is_named(way):
    other = receipt(1, replace(TENSOR, checksum=6))
    with pytest.raises(WeightSyncError, match="rollout-1: tensor a is different"):
        run(Setting(way, FakeEngine(), FakeEngine(other)), 1)


@BOTH
def test_an_engine_that_refuses_a_version_is_named(way):
    refusal = WeightVersionError("weights of version 9 come from the future")
    with pytest.raises(WeightSyncError, match="rollout-0: weights of version 9 come from the future"):
        run(Setting(way, FakeEngine(refusal)), 9)


@BOTH
def test_a_slow_engine_is_named_and_not_waited_for(way):
    slow = FakeEngine()

    async def send():
        slow.gate = asyncio.Event()
        await Setting(way, FakeEngine(), slow, timeout_s=0.05).sync.send(1)

    with pytest.raises(WeightSyncError, match=r"rollout-1: no receipt for weight update 1 .*sync\.timeout_s=0\.05"):
        asyncio.run(send())


@BOTH
def test_an_engine_that_dies_while_it_is_probed_is_probed_again_after_its_restart(way):
    engine = FakeEngine()
    scores = [died(), LOGPROBS, LOGPROBS]

    async def score(token_ids):
        reply = scores.pop(0)
        if isinstance(reply, Exception):
            engine.pid += 1
            raise reply
        return reply

    engine.score = FakeMethod(score)
    (report,) = run(Setting(way, engine), 1)
    assert report.probe_gap_max == 0.0
    assert scores == []
    assert (engine.versions, engine.sources[-1]) == ([1, 1], "path")


@BOTH
def test_a_restarted_engine_gets_the_version_that_was_sent_last_from_memory(way):
    engine = FakeEngine()
    setting = Setting(way, engine)

    async def restart_while_the_next_version_is_gathered():
        await setting.sync.send(1)
        sending = asyncio.create_task(setting.sync.send(2))
        while setting.learner.calls[-1] != "publish 2":
            await asyncio.sleep(0)
        await setting.actors[0].repair(0, died())
        during = engine.versions[-1], engine.sources[-1]
        await sending
        await setting.actors[0].repair(1, died())
        return during, (engine.versions[-1], engine.sources[-1])

    assert asyncio.run(restart_while_the_next_version_is_gathered()) == ((1, "path"), (2, "path"))


@BOTH
def test_an_engine_that_restarts_before_the_first_update_keeps_the_base_model(way):
    engine = FakeEngine()
    setting = Setting(way, engine)
    asyncio.run(setting.actors[0].repair(0, died()))
    assert engine.loaded == []


@BOTH
def test_a_restarted_engine_that_is_wrong_stops_the_run(way):
    engine = FakeEngine()
    setting = Setting(way, engine)

    async def restart():
        await setting.sync.send(1)
        engine.replies = [replace(receipt(1), tensors=())]
        await setting.actors[0].repair(0, died())

    with pytest.raises(WeightSyncError, match="rollout-0: tensor a is missing"):
        asyncio.run(restart())


@BOTH
def test_a_restarted_engine_is_probed_if_the_update_was(way):
    engine = FakeEngine()
    setting = Setting(way, engine)

    async def restart():
        await setting.sync.send(1)
        engine.logprobs = (-1.0, -3.0)
        await setting.actors[0].repair(0, died())

    with pytest.raises(WeightSyncError, match="rollout-0: after weight update 1"):
        asyncio.run(restart())


@BOTH
def test_weights_are_not_written_over_while_an_engine_still_reads_them(way):
    engine = FakeEngine()
    setting = Setting(way, engine)

    async def send_during_a_restart():
        await setting.sync.send(1)
        engine.gate = asyncio.Event()
        repair = asyncio.create_task(setting.actors[0].repair(0, died()))
        await asyncio.sleep(0.01)
        sending = asyncio.create_task(setting.sync.send(2))
        await asyncio.sleep(0.01)
        waited = "publish 2" not in setting.learner.calls
        engine.gate.set()
        await asyncio.gather(repair, sending)
        return waited

    assert asyncio.run(send_during_a_restart())
    assert engine.versions == [1, 1, 2]


# through host memory


def test_every_engine_gets_the_weights_where_they_lie():
    engines = [FakeEngine(), FakeEngine()]
    setting = Setting("memory", *engines)
    run(setting, 1)
    assert [engine.sources for engine in engines] == [["path"], ["path"]]
    assert setting.learner.calls == ["publish 1", "score"]


def test_an_engine_that_dies_while_it_loads_gets_the_weights_after_its_restart():
    engine = FakeEngine(died())
    setting = Setting("memory", engine)
    (report,) = run(setting, 4)
    assert setting.log == ["restarting", "back"]
    assert engine.versions == [4, 4, 4], "lost, after the restart, and the call again"
    assert report.num_engines == 1


def test_an_engine_that_is_gone_for_good_does_not_stop_the_others():
    (report,) = run(Setting("memory", FakeEngine(*[died()] * 99), FakeEngine()), 1)
    assert report.num_engines == 1
    with pytest.raises(ActorLost, match="no rollout actor is left"):
        run(Setting("memory", FakeEngine(*[died()] * 99)), 1)


def test_engines_on_another_host_get_the_values():
    near, far = FakeEngine(), FakeEngine(node="host-1")
    setting = Setting("memory", near, far)
    reports = run(setting, 1, 2)
    assert (near.versions, near.sources) == ([1, 2], ["path", "path"])
    assert (far.versions, far.sources) == ([1, 2], [tuple, tuple])
    assert setting.learner.calls == ["publish 1", "put 1, delta=False", "score", "publish 2", "put 2, delta=False"]
    assert [report.num_travelling_bytes for report in reports] == [4, 4]


def test_with_deltas_a_restarted_engine_on_another_host_gets_whole_weights():
    far = FakeEngine(node="host-1")
    setting = Setting("memory", far, delta=True)

    async def restart():
        await setting.sync.send(1)
        await setting.sync.send(2)
        await setting.actors[0].repair(0, died())

    asyncio.run(restart())
    assert [update.num_travelling_bytes for update in far.loaded] == [1, 1, 4]


def test_an_engine_that_restarts_on_another_host_gets_whole_weights():
    engine = FakeEngine()
    setting = Setting("memory", engine)

    async def move():
        await setting.sync.send(1)
        engine.node = "host-1"
        await setting.actors[0].repair(0, died())

    asyncio.run(move())
    assert engine.sources == ["path", tuple]


@BOTH
def test_an_engine_that_restarts_on_another_host_waits_for_an_update_that_outlasts_every_limit(way):
    engine = FakeEngine()
    setting = Setting(way, engine, timeout_s=0.05)

    async def restart_during_an_update():
        await setting.sync.send(1)
        engine.node = "host-1"
        setting.learner.is_free.clear()
        repair = asyncio.create_task(setting.actors[0].repair(0, died()))
        await asyncio.sleep(0.5)  # longer than the limits of a start, 0.2, and of an update
        waited = not repair.done() and setting.actors[0].is_repairing
        setting.learner.is_free.set()
        await repair
        return waited

    assert asyncio.run(restart_during_an_update())
    assert setting.log == ["restarting", "back"]
    assert (engine.versions[-1], engine.sources[-1]) == (1, tuple)


def test_an_engine_that_hangs_after_the_learner_was_waited_for_is_still_late():
    engine = FakeEngine()
    setting = Setting("memory", engine, timeout_s=0.05)

    async def restart_and_hang():
        await setting.sync.send(1)
        engine.node, engine.gate = "host-1", asyncio.Event()
        setting.learner.is_free.clear()
        asyncio.get_running_loop().call_later(0.3, setting.learner.is_free.set)
        await setting.actors[0].repair(0, died())

    with pytest.raises(WeightSyncError, match=r"rollout-0: no receipt for weight update 1 .*sync\.timeout_s=0\.05"):
        asyncio.run(restart_and_hang())


def test_an_engine_that_does_not_say_where_it_restarted_is_late():
    engine = FakeEngine()
    setting = Setting("memory", engine, timeout_s=0.05)

    async def restart_and_hang():
        await setting.sync.send(1)
        engine.node_id = FakeMethod(asyncio.Event().wait)
        await setting.actors[0].repair(0, died())

    with pytest.raises(WeightSyncError, match="rollout-0: no answer after its restart"):
        asyncio.run(restart_and_hang())


# by broadcast


def test_engines_take_their_ranks_one_after_the_other_and_the_group_stays():
    engines = [FakeEngine(), FakeEngine()]
    setting = Setting("collective", *engines, workers_per_engine=4, timeout_s=60.0)
    run(setting, 1, 2)
    assert setting.learner.groups == [(8, 1, 30.0)]
    assert [[update.first_rank for update in engine.loaded] for engine in engines] == [[1, 1], [5, 5]]
    assert engines[0].versions == [1, 2]
    assert {update.source.world_size for engine in engines for update in engine.loaded} == {9}


def test_engines_receive_while_the_ranks_gather():
    engine = FakeEngine()
    setting = Setting("collective", engine)

    async def send():
        sending = asyncio.create_task(setting.sync.send(1))
        while not engine.loaded:
            await asyncio.sleep(0)
        received_early = "score" not in setting.learner.calls
        await sending
        return received_early

    assert asyncio.run(send())


def test_a_new_group_is_formed_after_a_restart():
    calm, restarted = FakeEngine(), FakeEngine()
    setting = Setting("collective", calm, restarted)

    async def restart_in_between():
        await setting.sync.send(1)
        restarted.dies_at_ready = True
        await setting.sync.send(2)

    asyncio.run(restart_in_between())
    assert [epoch for _, epoch, _ in setting.learner.groups] == [1, 2]
    assert restarted.versions == [1, 1, 2]
    assert restarted.sources == [WeightGroup, "path", WeightGroup]
    assert [update.source.epoch for update in calm.loaded] == [1, 2]


def test_an_engine_that_stands_still_is_named_before_those_that_waited_for_it():
    waited = FakeEngine(WeightLoadError("weights of version 1: weight group 1 is broken"))
    still = FakeEngine()
    setting = Setting("collective", waited, still, timeout_s=0.1)
    setting.learner.broken = WeightGroupError("a bucket was under way for 0.05 s")

    async def send():
        still.gate = asyncio.Event()
        await setting.sync.send(1)

    with pytest.raises(WeightSyncError) as caught:
        asyncio.run(send())
    first, second, third, _ = str(caught.value).split("; ", 3)
    assert first.startswith("rollout-1: no receipt for weight update 1 after 0 s")
    assert "rollout-0: weights of version 1: weight group 1 is broken" in (second + third)
    assert "learner: a bucket was under way for 0.05 s" in str(caught.value)


def test_an_engine_that_dies_while_it_receives_stops_the_run_by_its_name():
    with pytest.raises(WeightSyncError, match="rollout-0: no receipt for weight update 1, its actor is gone"):
        run(Setting("collective", FakeEngine(died()), FakeEngine()), 1)


def test_an_engine_that_does_not_answer_is_named_before_anything_is_sent():
    engine = FakeEngine()

    async def never():
        await asyncio.Event().wait()

    engine.ready = FakeMethod(never)
    with pytest.raises(WeightSyncError, match="rollout-0: no answer before a weight update"):
        run(Setting("collective", engine, timeout_s=0.05), 1)
    assert engine.loaded == []


def test_a_learner_that_dies_leaves_no_engine_waited_for():
    engine = FakeEngine()
    setting = Setting("collective", engine)
    setting.learner.broken = ActorLost("a learner rank died in publish_weights")

    async def send():
        engine.gate = asyncio.Event()
        with pytest.raises(ActorLost, match="learner rank died"):
            await setting.sync.send(1)
        await asyncio.sleep(0.01)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(send()) == set()
