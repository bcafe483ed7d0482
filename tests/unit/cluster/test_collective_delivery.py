"""Broadcasts to engines that restart, stand still, refuse or die; on stand-ins for their handles."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from ray.exceptions import ActorUnavailableError

from actors.config import SyncConfig
from actors.weights.update import (
    TensorRecord,
    WeightBroadcast,
    WeightGroup,
    WeightGroupError,
    WeightLoadError,
    WeightReceipt,
    WeightUpdate,
    WeightVersionError,
)
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.weights.collective import CollectiveDelivery
from cluster.weights.contract import WeightSyncError
from learner.weights.published import PublishedWeights

TENSOR = TensorRecord(name="a", dtype="float32", shape=(1,), num_bytes=4, checksum=5)
GROUP = WeightGroup(host="h", port=1, world_size=0, epoch=0, timeout_s=1.0, stride=64, tensors=())
PROBE = (7, 8, 9)
LOGPROBS = (-1.0, -2.0)


class FakeMethod:
    """`handle.method.remote(...)` of a coroutine function."""

    def __init__(self, call) -> None:
        self.remote = call


class FakeEngine:
    """Writes down what it loads; `replies` holds receipts or errors that come first."""

    def __init__(self, *replies, logprobs=LOGPROBS) -> None:
        self.replies = list(replies)
        self.logprobs = logprobs
        self.pid = 1
        self.dies_at_ready = False
        self.stands_still = False
        self.loaded = []
        for name in ("node_id", "load_weights", "score", "ready"):
            setattr(self, name, FakeMethod(getattr(self, f"_{name}")))

    async def _ready(self):
        if self.dies_at_ready:
            self.dies_at_ready = False
            self.pid += 1
            raise died()
        return self.pid

    async def _node_id(self):
        return "host-0"

    async def _load_weights(self, weights):
        self.loaded.append(weights)
        if self.stands_still:
            await asyncio.Event().wait()
        reply = self.replies.pop(0) if self.replies else receipt(weights.version)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _score(self, token_ids):
        assert token_ids == PROBE
        return self.logprobs


class FakeRank:
    """Learner rank 0; `opened` holds (receivers, epoch, timeout)."""

    def __init__(self) -> None:
        self.opened = []
        self.node_id = FakeMethod(self._node_id)
        self.open_weight_group = FakeMethod(self._open_weight_group)

    async def _node_id(self):
        return "host-0"

    async def _open_weight_group(self, *, num_receivers, epoch, timeout_s):
        self.opened.append((num_receivers, epoch, timeout_s))
        return replace(GROUP, world_size=1 + num_receivers, epoch=epoch)


def receipt(version, tensor=TENSOR):
    return WeightReceipt(version=version, tensors=(tensor,), pause_s=0.1, apply_s=0.1)


def died():
    return ActorUnavailableError("killed", actor_id=None)


class Setting:
    """A delivery to these engines, with supervision as in a run."""

    def __init__(self, *engines, workers_per_engine=1, **config) -> None:
        self.rank = FakeRank()
        self.actors = [
            SupervisedActor(
                f"rollout-{i}",
                engine,
                startup_timeout_s=0.2,
                on_fault=lambda **fields: None,
                after_restart=lambda handle, i=i: self.delivery.bring_up_to_date(f"rollout-{i}", handle),
            )
            for i, engine in enumerate(engines)
        ]
        self.delivery = CollectiveDelivery(
            RayRollouts(self.actors, [], on_fault=lambda **fields: None),
            learner=self.rank,
            config=SyncConfig(**config),
            probe_ids=PROBE,
            max_probe_gap=0.01,
            workers_per_engine=workers_per_engine,
        )

    async def sync(self, version, *, broken=None):
        probe, elsewhere = await self.delivery.prepare()
        assert not elsewhere

        async def publish():
            await asyncio.sleep(0.01)
            if broken is not None:
                raise broken
            return PublishedWeights(
                update=WeightUpdate(version=version, path="p", tensors=(TENSOR,)),
                payload=None,
                probe_logprobs=LOGPROBS if probe else None,
                gather_s=0.0,
                write_s=0.0,
                num_travelling_bytes=0,
            )

        weights = await self.delivery.accompany(version, publish())
        self.delivery.published(weights)
        return await self.delivery.deliver(weights)


def run(setting, *versions):
    async def syncs():
        return [await setting.sync(version) for version in versions]

    return asyncio.run(syncs())


def test_engines_take_their_ranks_one_after_the_other_and_the_group_stays():
    engines = [FakeEngine(), FakeEngine()]
    setting = Setting(*engines, workers_per_engine=4, timeout_s=60.0)
    run(setting, 1, 2)
    assert setting.rank.opened == [(8, 1, 30.0)]
    assert [[update.first_rank for update in engine.loaded] for engine in engines] == [[1, 1], [5, 5]]
    assert [update.version for update in engines[0].loaded] == [1, 2]
    assert {update.group.world_size for engine in engines for update in engine.loaded} == {9}


def test_receipts_and_probe_are_checked_after_the_ranks_are_free():
    (first, second) = run(Setting(FakeEngine(logprobs=(-1.0, -2.004))), 1, 2)
    assert first["rollout-0"].probe_gap == pytest.approx(0.002)
    assert second["rollout-0"].probe_gap is None
    other = receipt(1, replace(TENSOR, checksum=6))
    with pytest.raises(WeightSyncError, match="rollout-1: tensor a is different"):
        run(Setting(FakeEngine(), FakeEngine(other)), 1)
    with pytest.raises(WeightSyncError, match="rollout-0: after weight update 1"):
        run(Setting(FakeEngine(logprobs=(-1.0, -3.0))), 1)


def test_a_restarted_engine_gets_the_current_weights_from_memory_and_a_new_group_is_formed():
    calm, restarted = FakeEngine(), FakeEngine()
    setting = Setting(calm, restarted)

    async def restart_in_between():
        await setting.sync(1)
        restarted.dies_at_ready = True
        return await setting.sync(2)

    delivered = asyncio.run(restart_in_between())
    assert list(delivered) == ["rollout-0", "rollout-1"]
    assert [epoch for _, epoch, _ in setting.rank.opened] == [1, 2]
    kinds = [(type(update), update.version) for update in restarted.loaded]
    assert kinds == [(WeightBroadcast, 1), (WeightUpdate, 1), (WeightBroadcast, 2)]
    assert [update.group.epoch for update in calm.loaded] == [1, 2]


def test_an_engine_that_stands_still_is_named_before_those_that_waited_for_it():
    waited = FakeEngine(WeightLoadError("weights of version 1: weight group 1 is broken"))
    still = FakeEngine()
    still.stands_still = True
    setting = Setting(waited, still, timeout_s=0.1)
    with pytest.raises(WeightSyncError) as caught:
        asyncio.run(setting.sync(1, broken=WeightGroupError("a bucket was under way for 0.05 s")))
    first, second, third, _ = str(caught.value).split("; ", 3)
    assert first.startswith("rollout-1: no receipt for weight update 1 after 0 s")
    assert "rollout-0: weights of version 1: weight group 1 is broken" in (second + third)
    assert "learner: a bucket was under way for 0.05 s" in str(caught.value)


def test_an_engine_that_stands_still_after_the_last_bucket_is_named_too():
    still = FakeEngine()
    still.stands_still = True
    with pytest.raises(WeightSyncError, match=r"rollout-1: no receipt for weight update 1 .*sync\.timeout_s=0\.05"):
        run(Setting(FakeEngine(), still, timeout_s=0.05), 1)


def test_an_engine_that_dies_while_it_receives_stops_the_run_by_its_name():
    with pytest.raises(WeightSyncError, match="rollout-0: no receipt for weight update 1, its actor is gone"):
        run(Setting(FakeEngine(died()), FakeEngine()), 1)


def test_an_engine_that_refuses_a_version_is_named():
    refusal = WeightVersionError("weights of version 9 come from the future")
    with pytest.raises(WeightSyncError, match="rollout-0: weights of version 9 come from the future"):
        run(Setting(FakeEngine(refusal)), 9)


def test_an_engine_that_gives_no_sign_of_life_is_named_before_anything_is_sent():
    engine = FakeEngine()

    async def never():
        await asyncio.Event().wait()

    engine.ready = FakeMethod(never)
    with pytest.raises(WeightSyncError, match="rollout-0: no sign of life before a weight update"):
        run(Setting(engine, timeout_s=0.05), 1)
    assert engine.loaded == []


def test_an_engine_that_dies_while_it_is_probed_is_probed_again_after_its_restart():
    engine = FakeEngine()
    scores = [died(), LOGPROBS, LOGPROBS]

    async def score(token_ids):
        reply = scores.pop(0)
        if isinstance(reply, Exception):
            engine.pid += 1
            raise reply
        return reply

    engine.score = FakeMethod(score)
    (delivered,) = run(Setting(engine), 1)
    assert delivered["rollout-0"].probe_gap == 0.0
    assert [type(update) for update in engine.loaded] == [WeightBroadcast, WeightUpdate]
