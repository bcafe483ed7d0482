"""Weights on their way to engines that restart, lag behind, live elsewhere or lie; on stand-ins for their handles."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from ray.exceptions import ActorUnavailableError

from actors.config import SyncConfig
from actors.weights.update import TensorRecord, WeightReceipt, WeightUpdate, WeightVersionError
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import ActorLost, SupervisedActor
from cluster.weights.contract import WeightSyncError
from cluster.weights.delivery import WeightDelivery
from learner.weights.published import PublishedWeights

TENSOR = TensorRecord(name="a", dtype="float32", shape=(1,), num_bytes=4, checksum=5)
PROBE = (7, 8, 9)
LEARNER_LOGPROBS = (-1.0, -2.0)


class FakeMethod:
    """`handle.method.remote(...)` of a coroutine function."""

    def __init__(self, call) -> None:
        self.remote = call


class FakeEngine:
    """Takes what it is sent; `receipts` holds receipts or errors that come first."""

    def __init__(self, *, node="host-0", receipts=(), logprobs=LEARNER_LOGPROBS) -> None:
        self.node = node
        self.receipts = list(receipts)
        self.logprobs = logprobs
        self.loaded = []
        self.gate: asyncio.Event | None = None
        for name in ("node_id", "load_weights", "score", "ready"):
            setattr(self, name, FakeMethod(getattr(self, f"_{name}")))

    async def _ready(self):
        return 1

    async def _node_id(self):
        return self.node

    async def _load_weights(self, weights):
        weights = await weights if asyncio.iscoroutine(weights) else weights
        if self.gate is not None:
            await self.gate.wait()
        self.loaded.append(weights)
        reply = self.receipts.pop(0) if self.receipts else None
        if isinstance(reply, Exception):
            raise reply
        version = weights.version if isinstance(weights, WeightUpdate) else int(weights.split()[-1])
        return reply or WeightReceipt(version=version, tensors=(TENSOR,), pause_s=0.1, apply_s=0.1)

    async def _score(self, token_ids):
        assert token_ids == PROBE
        return self.logprobs


class FakeRank:
    """Learner rank 0."""

    def __init__(self) -> None:
        self.node_id = FakeMethod(self._node_id)
        self.whole_weights = FakeMethod(self._whole_weights)

    async def _node_id(self):
        return "host-0"

    async def _whole_weights(self, version):
        return f"whole {version}"


def published(version, *, probed=False, payload=None):
    return PublishedWeights(
        update=WeightUpdate(version=version, path="p", tensors=(TENSOR,)),
        payload=payload,
        probe_logprobs=LEARNER_LOGPROBS if probed else None,
        gather_s=0.0,
        write_s=0.0,
        num_travelling_bytes=0,
    )


class Setting:
    """A delivery to these engines, with supervision as in a run."""

    def __init__(self, *engines, **config) -> None:
        self.log = []
        self.actors = [
            SupervisedActor(
                f"rollout-{i}",
                engine,
                startup_timeout_s=0.2,
                on_fault=lambda **fields: self.log.append(fields["action"]),
                after_restart=lambda handle, i=i: self.delivery.bring_up_to_date(f"rollout-{i}", handle),
            )
            for i, engine in enumerate(engines)
        ]
        self.delivery = WeightDelivery(
            RayRollouts(self.actors, [], on_fault=lambda **fields: None),
            learner=FakeRank(),
            config=SyncConfig(**config),
            probe_ids=PROBE,
            max_probe_gap=0.01,
        )

    async def sync(self, weights):
        probe, elsewhere = await self.delivery.prepare()
        self.delivery.published(weights)
        return probe, elsewhere, await self.delivery.deliver(weights)


def run(setting, *updates):
    async def syncs():
        return [await setting.sync(weights) for weights in updates]

    return asyncio.run(syncs())


def died():
    return ActorUnavailableError("killed", actor_id=None)


def test_every_engine_gets_the_weights_where_they_lie():
    engines = [FakeEngine(), FakeEngine()]
    ((_, elsewhere, delivered),) = run(Setting(*engines), published(1))
    assert [engine.loaded[0].path for engine in engines] == ["p", "p"]
    assert not elsewhere
    assert list(delivered) == ["rollout-0", "rollout-1"]


def test_the_first_update_and_every_third_one_are_probed():
    found = run(Setting(FakeEngine(), probe_every=3), *[published(version) for version in (5, 6, 7, 8, 9)])
    assert [probe is not None for probe, _, _ in found] == [True, False, False, True, False]


def test_a_probe_gap_is_reported_and_one_that_is_too_large_stops_the_run():
    ((_, _, delivered),) = run(Setting(FakeEngine(logprobs=(-1.0, -2.004))), published(1, probed=True))
    assert delivered["rollout-0"].probe_gap == pytest.approx(0.002)
    with pytest.raises(WeightSyncError, match="rollout-1: after weight update 1"):
        run(Setting(FakeEngine(), FakeEngine(logprobs=(-1.0, -3.0))), published(1, probed=True))


def test_an_engine_that_loaded_something_else_is_named():
    other = WeightReceipt(version=1, tensors=(replace(TENSOR, checksum=6),), pause_s=0.1, apply_s=0.1)
    with pytest.raises(WeightSyncError, match="rollout-1: tensor a is different"):
        run(Setting(FakeEngine(), FakeEngine(receipts=[other])), published(1))


def test_an_engine_that_refuses_a_version_is_named():
    refusal = WeightVersionError("weights of version 9 come from the future")
    with pytest.raises(WeightSyncError, match="rollout-0: weights of version 9 come from the future"):
        run(Setting(FakeEngine(receipts=[refusal])), published(9))


def test_a_slow_engine_is_named_and_not_waited_for():
    slow = FakeEngine()

    async def sync():
        slow.gate = asyncio.Event()
        await Setting(FakeEngine(), slow, timeout_s=0.05).sync(published(1))

    with pytest.raises(WeightSyncError, match=r"rollout-1: no receipt for weight update 1 .*sync\.timeout_s=0\.05"):
        asyncio.run(sync())


def test_an_engine_that_dies_while_it_loads_gets_the_weights_after_its_restart():
    engine = FakeEngine(receipts=[died()])
    setting = Setting(engine)
    ((_, _, delivered),) = run(setting, published(4))
    assert setting.log == ["restarting", "back"]
    assert [weights.version for weights in engine.loaded] == [4, 4, 4], "lost, after the restart, and the call again"
    assert delivered["rollout-0"].receipt.version == 4


def test_an_engine_that_is_gone_for_good_does_not_stop_the_others():
    ((_, _, delivered),) = run(Setting(FakeEngine(receipts=[died()] * 99), FakeEngine()), published(1))
    assert list(delivered) == ["rollout-1"]
    with pytest.raises(ActorLost, match="no rollout actor is left"):
        run(Setting(FakeEngine(receipts=[died()] * 99)), published(1))


def test_a_restarted_engine_gets_the_version_that_was_delivered_last():
    engine = FakeEngine()
    setting = Setting(engine)

    async def restart_between_publishing_and_delivery():
        await setting.sync(published(1))
        await setting.delivery.prepare()
        setting.delivery.published(published(2))
        await setting.actors[0].repair(0, died())

    asyncio.run(restart_between_publishing_and_delivery())
    assert [weights.version for weights in engine.loaded] == [1, 1]


def test_a_restarted_engine_that_is_wrong_stops_the_run():
    engine = FakeEngine()
    setting = Setting(engine)

    async def restart():
        await setting.sync(published(1))
        engine.receipts = [WeightReceipt(version=1, tensors=(), pause_s=0.1, apply_s=0.1)]
        await setting.actors[0].repair(0, died())

    with pytest.raises(WeightSyncError, match="rollout-0: tensor a is missing"):
        asyncio.run(restart())


def test_weights_are_not_written_over_while_an_engine_still_reads_them():
    engine = FakeEngine()
    setting = Setting(engine)

    async def publish_during_a_restart():
        await setting.sync(published(1))
        engine.gate = asyncio.Event()
        repair = asyncio.create_task(setting.actors[0].repair(0, died()))
        await asyncio.sleep(0.01)
        preparing = asyncio.create_task(setting.delivery.prepare())
        await asyncio.sleep(0.01)
        waited = not preparing.done()
        engine.gate.set()
        await asyncio.gather(repair, preparing)
        return waited

    assert asyncio.run(publish_during_a_restart())


def test_two_updates_cannot_be_under_way_at_once():
    setting = Setting(FakeEngine())

    async def publish_twice():
        await setting.delivery.prepare()
        setting.delivery.published(published(1))
        await setting.delivery.prepare()

    with pytest.raises(RuntimeError, match="have not been delivered"):
        asyncio.run(publish_twice())


def test_engines_on_another_host_get_what_travels():
    near, far = FakeEngine(), FakeEngine(node="host-1")
    found = run(Setting(near, far), published(1, payload="payload 1"), published(2, payload="payload 2"))
    assert [elsewhere for _, elsewhere, _ in found] == [True, True]
    assert far.loaded == ["payload 1", "payload 2"]
    assert [weights.version for weights in near.loaded] == [1, 2]


def test_with_deltas_a_restarted_engine_on_another_host_gets_whole_weights():
    far = FakeEngine(node="host-1")
    setting = Setting(far, delta=True)

    async def restart():
        await setting.sync(published(1, payload="payload 1"))
        await setting.sync(published(2, payload="changes 2"))
        await setting.actors[0].repair(0, died())

    asyncio.run(restart())
    assert far.loaded == ["payload 1", "changes 2", "whole 2"]
