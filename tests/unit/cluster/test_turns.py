"""Engines and learner in turns on shared GPUs: by themselves, and in the loop with the real shells around stand-ins for
their actors, which refuse whatever they are asked for out of turn."""

from __future__ import annotations

import asyncio
import json

import pytest
from ray.exceptions import RayActorError

from actors.config import SyncConfig
from actors.trajectory import GroupMeta
from actors.weights.update import WeightReceipt, WeightUpdate
from cluster.processes.learner import RayLearner
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.processes.turns import Side, Turns
from cluster.run.stopping import Interrupted
from cluster.weights.sync import WeightSync
from cluster.weights.transports import HostMemory

ONE_PHASE = [{"name": "short", "max_prompt_tokens": 25, "end": {"type": "steps", "steps": 2}}]

# ---- by themselves


class Sides:
    """Both sides; they write down what is asked of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuses = False

    async def sleep(self) -> None:
        self.calls.append("sleep")

    async def wake_up(self) -> None:
        if self.refuses:
            raise RuntimeError("no memory")
        self.calls.append("wake_up")

    async def rest(self) -> None:
        self.calls.append("rest")


@pytest.fixture
def sides():
    return Sides()


@pytest.fixture
def turns(sides):
    turns = Turns()
    turns.take(sides, sides)
    return turns


def test_engines_begin_and_whoever_comes_next_changes_the_turn_once(turns, sides):
    async def run():
        for side in (Side.ENGINES, Side.LEARNER, Side.LEARNER, Side.ENGINES, Side.ENGINES):
            async with turns.of(side):
                sides.calls.append(str(side))

    asyncio.run(run())
    assert sides.calls == ["engines", "sleep", "learner", "learner", "rest", "wake_up", "engines", "engines"]


def test_calls_of_one_side_hold_the_turn_together_and_the_other_side_waits_for_the_last_of_them(turns, sides):
    async def run():
        ends = [asyncio.Event(), asyncio.Event()]

        async def engine(end):
            async with turns.of(Side.ENGINES):
                await end.wait()
            sides.calls.append("answered")

        async def learner():
            async with turns.of(Side.LEARNER):
                sides.calls.append("update")

        tasks = [asyncio.create_task(work) for work in (engine(ends[0]), engine(ends[1]), learner())]
        for end in ends:
            for _ in range(10):
                await asyncio.sleep(0)
            assert "sleep" not in sides.calls
            end.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert sides.calls == ["answered", "answered", "sleep", "update"]


def test_a_change_that_fails_is_tried_again_by_the_next_call(turns, sides):
    async def run():
        async with turns.of(Side.LEARNER):
            pass
        sides.refuses = True
        with pytest.raises(RuntimeError, match="no memory"):
            async with turns.of(Side.ENGINES):
                pass
        sides.refuses = False
        async with turns.of(Side.ENGINES):
            sides.calls.append("engines")

    asyncio.run(run())
    assert sides.calls == ["sleep", "rest", "rest", "wake_up", "engines"]


def test_a_call_that_is_given_up_leaves_the_turn(turns, sides):
    async def run():
        async def hang():
            async with turns.of(Side.ENGINES):
                await asyncio.Event().wait()

        hanging = asyncio.create_task(hang())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(anext(aiter_of(turns, Side.LEARNER)))
        await asyncio.sleep(0)
        assert sides.calls == []
        hanging.cancel()
        await waiting

    asyncio.run(run())
    assert sides.calls == ["sleep"]


async def aiter_of(turns, side):
    async with turns.of(side):
        yield


# ---- in the loop


class Method:
    """`handle.method.options(...).remote(...)` of a coroutine function with a list of results."""

    def __init__(self, call, num_returns=None) -> None:
        self._call = call
        self._num_returns = num_returns

    def options(self, *, num_returns=None, **_):
        return Method(self._call, num_returns)

    def remote(self, *arguments, **options):
        if self._num_returns is None:
            return self._call(*arguments, **options)
        results = [asyncio.get_running_loop().create_future() for _ in range(self._num_returns)]
        task = asyncio.ensure_future(self._call(*arguments, **options))

        def settle(done):
            error = None if done.cancelled() else done.exception()
            for index, future in enumerate(results):
                if error is not None:
                    future.set_exception(error)
                    future.exception()
                elif not done.cancelled():
                    future.set_result(done.result()[index])

        task.add_done_callback(settle)
        return [*results[:-1], Reference(results[-1])]


class Reference:
    """A reference to a group; whoever is handed it reads the group."""

    def __init__(self, future) -> None:
        self._future = future

    def __getattr__(self, name):
        return getattr(self._future.result(), name)


class Gpu:
    """One GPU with an engine, a judge and a rank on it; each call says whether it came in turn."""

    def __init__(self, bench) -> None:
        self.bench = bench
        self.calls: list[str] = []
        self.is_awake = True
        self.is_loaded = True
        self.version = 0
        self.restarts_asleep = False
        """Whether the process of the engine is restarted, unnoticed, as soon as it sleeps."""

    def engine_works(self, what: str) -> None:
        assert self.is_loaded, f"{what} by an engine that is not loaded"
        assert self.is_awake, f"{what} by an engine that sleeps"
        self.calls.append(what)

    def learner_works(self, what: str) -> None:
        assert not (self.is_awake and self.is_loaded), f"{what} while the engine has its memory"
        self.calls.append(what)


class EngineHandle:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        for name in ("ready", "node_id", "next_group", "answer", "sleep", "wake_up", "load_weights", "abort"):
            setattr(self, name, Method(getattr(self, f"_{name}")))

    async def _ready(self):
        if not self.gpu.is_loaded:
            self.gpu.is_loaded = self.gpu.is_awake = True
            self.gpu.version = 0
            self.gpu.calls.append("load the base model")
        return 1

    async def _node_id(self):
        return "node"

    async def _next_group(self, sampling):
        lease = self.gpu.bench.coordinator.lease("engine")
        if lease is None:
            return None, 9, None
        await asyncio.sleep(0)
        self.gpu.engine_works(f"sample at {self.gpu.version}")
        scored = self.gpu.bench.fakes._scored(lease, self.gpu.bench.fakes.accuracies(lease), self.gpu.version)
        return GroupMeta.of(scored.group), 9, scored.group

    async def _answer(self, task, lease, sampling):
        self.gpu.engine_works(f"answer at {self.gpu.version}")
        scored = self.gpu.bench.fakes._scored(lease, [1.0] * sampling.num_samples, self.gpu.version)
        return GroupMeta.of(scored.group), scored.group

    async def _sleep(self):
        self.gpu.calls.append("sleep")
        self.gpu.is_awake = False
        if self.gpu.restarts_asleep:
            self.gpu.is_loaded, self.gpu.restarts_asleep = False, False

    async def _wake_up(self):
        if not self.gpu.is_loaded:
            return False
        self.gpu.calls.append("wake_up")
        self.gpu.is_awake = True
        return True

    async def _load_weights(self, update):
        self.gpu.engine_works(f"load {update.version}")
        self.gpu.version = update.version
        return WeightReceipt(version=update.version, tensors=(), pause_s=0.0)

    async def _abort(self):
        self.gpu.calls.append("abort")


class JudgeHandle:
    def __init__(self, gpu: Gpu, make_score) -> None:
        self.gpu = gpu
        self.make_score = make_score
        self.score_group = Method(self._score)
        self.drain_events = Method(self._drain)

    async def _score(self, group):
        worth = self.gpu.bench.fakes.accuracies(group.lease)[: len(group.trajectories)]
        return tuple(self.make_score(accuracy) for accuracy in worth)

    async def _drain(self):
        return []


class RankHandle:
    """One rank on the stand-in of the learner."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        for name in ("start_stage", "accumulate", "update", "drop", "rest", "publish_weights", "node_id", "save"):
            setattr(self, name, Method(getattr(self, f"_{name}")))

    async def _start_stage(self, stage, reference):
        self.gpu.learner_works(f"stage {stage}")

    async def _accumulate(self, items, batch_groups):
        self.gpu.learner_works(f"accumulate {len(items)}")
        await self.gpu.bench.fakes.train()

    async def _update(self, learning_rate):
        self.gpu.learner_works("update")
        return self.gpu.bench.report

    async def _drop(self):
        self.gpu.learner_works("drop")

    async def _rest(self):
        self.gpu.calls.append("rest")

    async def _publish_weights(self, version):
        self.gpu.calls.append(f"publish {version}")
        return WeightUpdate(version=version, source="", tensors=())

    async def _node_id(self):
        return "node"

    async def _save(self, place):
        self.gpu.calls.append("save")
        return {"weights": place.write("weights", [b"weights"])}


@pytest.fixture
def shared(bench, make_score):
    """A bench whose loop runs the real shells of engines, judge, learner and weights, all on one GPU."""

    def build(**overrides):
        b = bench(
            accuracies=lambda lease: [1.0, 0.0],
            phases=ONE_PHASE,
            cluster={"share_gpus": "all"},
            **{"curriculum": {"retrospective": None}, **overrides},
        )
        b.fakes, b.report = b.rollouts, b.learner.report
        b.fakes.train = b.learner.train
        gpu = Gpu(b)
        turns = Turns()
        weights: WeightSync

        def supervised(name, handle, **hooks):
            return SupervisedActor(name, handle, startup_timeout_s=5.0, on_fault=lambda **_: None, **hooks)

        engine = supervised(
            "rollout-0", EngineHandle(gpu), after_restart=lambda name, handle: weights.bring_up_to_date(name, handle)
        )
        b.rollouts = RayRollouts(
            [engine], [supervised("judge-0", JudgeHandle(gpu, make_score))], on_fault=lambda **_: None, turns=turns
        )
        type(b.rollouts).object_store_bytes = property(lambda _: 0)
        b.learner = RayLearner([RankHandle(gpu)], reference=None, turns=turns)
        turns.take(b.rollouts, b.learner)
        b.transport = HostMemory(b.rollouts, b.learner, SyncConfig())
        loop = b.loop()
        weights = loop._weights
        b.run = lambda: asyncio.run(loop.run()) or gpu.calls
        b.gpu = gpu
        return b

    original = RayRollouts.object_store_bytes
    yield build
    RayRollouts.object_store_bytes = original


def test_the_engine_sleeps_before_the_update_and_wakes_up_before_the_weights_and_the_next_samples(shared):
    calls = shared().run()
    assert calls == [
        "sleep", "stage rl", "rest", "wake_up", *["sample at 0"] * 4,
        "sleep", "accumulate 4", "update", "rest", "wake_up", "publish 1", "load 1", *["sample at 1"] * 4,
        "sleep", "accumulate 4", "update", "publish 2", "rest", "wake_up", "load 2", "save",
    ]  # fmt: skip


def test_after_an_update_that_a_guard_leaves_out_the_engine_wakes_up_with_the_weights_it_had(shared):
    rule = {"metric": "reward/mean", "above": 0.1, "action": "skip"}
    calls = shared(guards=[rule]).run()
    assert calls[calls.index("drop") :][:4] == ["drop", "rest", "wake_up", "sample at 0"]
    assert not any(call.startswith(("update", "load")) for call in calls)


def test_held_out_questions_are_asked_of_engines_that_are_awake(shared, task):
    b = shared(heldout={"short": [task("h0", 0)]}, evaluation={"every_steps": 1})
    calls = b.run()
    assert [call for call in calls if call.startswith("answer")] == ["answer at 0", "answer at 1", "answer at 2"]


def test_an_engine_that_was_restarted_while_it_slept_is_loaded_and_brought_up_to_date_in_its_turn(shared):
    b = shared()
    train = b.fakes.train
    num_updates = iter(range(9))

    async def dies_in_the_second_update():
        b.gpu.restarts_asleep = next(num_updates) == 0  # the next time that it sleeps
        await train()

    b.fakes.train = dies_in_the_second_update
    calls = b.run()
    second = calls[calls.index("load 1") :]
    assert second == [
        "load 1", *["sample at 1"] * 4, "sleep", "accumulate 4", "update", "publish 2", "rest",
        "load the base model", "load 2", "load 2", "save",
    ]  # fmt: skip


def test_an_engine_that_dies_while_it_falls_asleep_is_repaired_and_sleeps_before_the_learner_works(shared):
    b = shared()
    engine = b.rollouts._rollouts[0].handle
    fall_asleep = engine._sleep
    deaths = iter([False, True, False, False])

    async def sleep():
        if next(deaths):
            b.gpu.is_loaded = False
            raise RayActorError
        await fall_asleep()

    engine.sleep = Method(sleep)
    calls = b.run()
    first = calls[calls.index("sample at 0") : calls.index("update")]
    assert first == [*["sample at 0"] * 4, "load the base model", "sleep", "accumulate 4"]


def test_a_run_that_is_stopped_while_its_engine_sleeps_saves_and_wakes_nobody(shared):
    b = shared()

    async def stop_in_the_second_step():
        if "update" in b.gpu.calls:
            b.stop.set()
            await asyncio.sleep(0.1)

    b.fakes.train = stop_in_the_second_step
    with pytest.raises(Interrupted):
        b.run()
    assert b.gpu.calls[-3:] == ["sleep", "accumulate 4", "save"]
    assert json.loads((b.folder.path / "events.jsonl").read_text().splitlines()[-1])["event"] == "checkpoint"
