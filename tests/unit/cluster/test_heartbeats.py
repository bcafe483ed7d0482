"""Who stands still is named, then killed; ranks that wait for a silent one are not to blame. On a clock of the test."""

from __future__ import annotations

import asyncio

import pytest

from cluster.processes.diagnosis import Diagnosis
from cluster.processes.heartbeats import Watch
from cluster.recipe.config import ClusterConfig
from cluster.run.recovery import RayLost, RestartFromCheckpoint
from cluster.run.waits import Waits
from curriculum.errors import RunFailed
from curriculum.heartbeat import IDLE, Heartbeat

BOUNDS = ClusterConfig(notice_s=30, standstill_s=600, startup_timeout_s=900)


def beat(doing="generate", still_s=0.0, pid=7):
    return Heartbeat(doing=doing, still_s=still_s, pid=pid, children=(pid + 100,), node_id="node")


class Scene:
    """Actors that answer what the test says, or nothing."""

    def __init__(self, tmp_path, *names) -> None:
        self.s, self.node_lives, self.node_is_stopped = 0.0, True, False
        self.lines, self.faults, self.killed = [], [], []
        self.diagnosis = Diagnosis(tmp_path / "diagnosis.txt")
        self.diagnosis.write = lambda reason, actors, **_: self.lines.append(f"diagnosis: {reason}")
        self.waits = Waits(BOUNDS.notice_s, now=lambda: self.s)
        self.watch = Watch(
            BOUNDS,
            self.waits,
            say=self.lines.append,
            note=lambda **fields: None,
            on_fault=lambda **fields: self.faults.append((fields["actor"], fields["doing"], fields["action"])),
            diagnosis=self.diagnosis,
            node_lives=lambda: self.node_lives,
            node_is_stopped=lambda: self.node_is_stopped,
            kill=lambda node, pids: self.killed.append((node, pids)),
            now=lambda: self.s,
        )
        for name in names:
            self.watch.add(name, lambda name=name: f"question to {name}")
        self.actors = self.watch._actors

    def pass_time(self, seconds, **beats):
        """Asks everyone every 5 s; those in `beats` answer at once, with a function of the time or a heartbeat."""
        for _ in range(int(seconds / 5)):
            self.s += 5.0
            for name, actor in self.actors.items():
                actor.ask(self.s)
                if (answer := beats.get(name.replace("-", "_"))) is not None:
                    actor.answer(answer(self.s) if callable(answer) else answer, self.s)
            self.watch._head_answered = self.s
            self.watch.judge(list(self.actors.values()))


@pytest.fixture
def scene(tmp_path):
    return lambda *names: Scene(tmp_path, *names)


def test_actors_that_answer_and_get_on_are_never_spoken_of(scene):
    s = scene("rollout-0", "learner-0")
    s.pass_time(5000, rollout_0=beat(still_s=4.0), learner_0=beat("accumulate", still_s=20.0))
    assert (s.lines, s.killed) == ([], [])


def test_an_actor_that_does_not_answer_is_named_at_doubling_intervals_then_killed_with_its_children(scene):
    s = scene("rollout-0")
    s.pass_time(5, rollout_0=beat())
    s.pass_time(590)
    assert [line.removeprefix("rollout-0: no answer in generate for ") for line in s.lines] == [
        "30 s", "60 s", "120 s", "240 s", "480 s",
    ]  # fmt: skip
    assert s.killed == []
    s.pass_time(20)
    assert s.killed == [("node", (7, 107))]
    assert s.faults == [("rollout-0", "generate", "killing it")]
    assert s.lines[-1] == "diagnosis: rollout-0: no answer in generate for 600 s"
    s.pass_time(5000)
    assert len(s.killed) == 1, "it starts again, which has a bound of its own"


def test_who_waits_for_a_silent_actor_is_told_as_well(scene):
    s = scene("learner-0")
    s.pass_time(5, learner_0=beat("idle"))
    with s.waits.on("accumulate of the learner", is_bounded=True, is_quiet=True):
        s.pass_time(35)
    assert s.lines == ["learner-0: no answer for 30 s; the run waits for accumulate of the learner"]


def test_an_engine_whose_core_is_frozen_answers_without_progress(scene):
    s = scene("rollout-0")
    s.pass_time(600, rollout_0=lambda now: beat(still_s=now))
    assert s.lines[0] == "rollout-0: no progress in generate for 30 s"
    assert s.killed == [("node", (7, 107))]


def test_what_goes_on_is_told_once(scene):
    s = scene("judge-0")
    s.pass_time(5, judge_0=beat())
    s.pass_time(70)
    s.pass_time(20, judge_0=beat())
    assert s.lines == [
        "judge-0: no answer in generate for 30 s",
        "judge-0: no answer in generate for 60 s",
        "judge-0: goes on after 60 s or more",
    ]


def test_a_rank_that_waits_for_a_silent_one_is_named_but_not_killed(scene):
    s = scene("learner-0", "learner-1")
    s.pass_time(5, learner_0=beat("accumulate", pid=1), learner_1=beat("accumulate", pid=2))
    s.pass_time(620, learner_0=lambda now: beat("accumulate", still_s=now, pid=1))
    assert s.killed == [("node", (2, 102))]
    assert "learner-0: no progress in accumulate for 30 s" in s.lines


def test_ranks_that_all_answer_and_hang_together_are_killed_together(scene):
    s = scene("learner-0", "learner-1")
    hanging = {f"learner_{i}": (lambda now, i=i: beat("update", still_s=now, pid=i)) for i in range(2)}
    s.pass_time(600, **hanging)
    assert {pids for _, pids in s.killed} == {(0, 100), (1, 101)}


def test_a_rank_may_write_a_model_for_as_long_as_it_may_load_one(scene):
    s = scene("learner-0")
    s.pass_time(895, learner_0=lambda now: beat("save", still_s=now))
    assert s.killed == []
    s.pass_time(5, learner_0=lambda now: beat("save", still_s=now))
    assert len(s.killed) == 1


def test_a_wait_of_the_driver_is_told_and_is_over_when_nothing_moves(scene):
    s = scene("rollout-0")

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        with s.waits.on("a batch"):
            s.pass_time(1000, rollout_0=beat(still_s=1.0))
            assert s.lines[:2] == ["waiting for a batch for 30 s", "waiting for a batch for 60 s"]
            await asyncio.sleep(0)
            assert not s.watch._lost.done(), "an engine gets on: a long answer"
            s.pass_time(605, rollout_0=beat("idle"))
            await asyncio.sleep(0)
            assert isinstance(s.watch._lost.result(), RestartFromCheckpoint)
            assert "nothing moves while the run waits for a batch, for 600 s" in str(s.watch._lost.result())

    asyncio.run(scenario())
    assert s.killed == []


def test_nothing_is_given_up_while_an_actor_starts_again(scene):
    s = scene("rollout-0", "learner-0")
    with s.waits.on("a batch"):
        s.pass_time(5000, learner_0=beat("idle"))
    assert s.killed == []
    assert not any("nothing moves" in line for line in s.lines)


def test_work_that_the_watch_gives_up_is_cancelled_and_its_reason_raised(scene):
    s = scene()

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        ended = []

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        s.watch._loop.call_soon(s.watch._give_up, RestartFromCheckpoint("a rank died"))
        with pytest.raises(RestartFromCheckpoint, match="a rank died"):
            await s.watch.guard(work())
        assert ended == [True]
        assert await s.watch.guard(asyncio.sleep(0, "again")) == "again", (
            "a run that is launched again is watched afresh"
        )

    asyncio.run(scenario())


def test_a_failure_that_follows_from_a_death_is_blamed_on_the_death(scene):
    s = scene()

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()

        async def work():
            s.watch._loop.call_later(0.01, s.watch._give_up, RestartFromCheckpoint("learner-0 died"))
            raise RunFailed("rollout-0: the memory of the weights is gone")

        with pytest.raises(RestartFromCheckpoint, match="learner-0 died"):
            await s.watch.guard(work())

    asyncio.run(scenario())


def test_a_wait_for_an_actor_that_is_killed_is_not_given_up_as_well(scene):
    s = scene("learner-0")

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        with s.waits.on("a checkpoint"):
            s.pass_time(5, learner_0=beat(IDLE))
            s.pass_time(BOUNDS.standstill_s + 60)
        await asyncio.sleep(0)
        assert s.faults == [("learner-0", IDLE, "killing it")]
        assert not s.watch._lost.done()

    asyncio.run(scenario())


def test_a_head_that_does_not_answer_ends_the_run_in_one_line(scene, monkeypatch):
    s = scene()
    monkeypatch.setattr("cluster.processes.heartbeats.head_address", lambda: "10.0.0.1:6379")

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        for s.s in (10.0, 25.0, 39.0):
            s.watch.judge([])
        assert s.lines == ["Ray's head at 10.0.0.1:6379: no answer for 25 s"]
        assert not s.watch.head_is_lost
        s.s = 41.0
        s.watch.judge([])
        await asyncio.sleep(0)
        assert "Ray's head at 10.0.0.1:6379 has not answered since" in str(s.watch._lost.result())
        assert s.watch.head_is_lost

    asyncio.run(scenario())


def test_a_node_process_that_is_frozen_is_named_and_ends_the_run(scene):
    s = scene()

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        s.node_is_stopped = True
        for s.s in (10.0, 25.0, 41.0):
            s.watch._head_answered = s.s
            s.watch.judge([])
        await asyncio.sleep(0)
        assert s.lines[0] == "Ray's process of this node (raylet): no answer for 25 s"
        assert "Ray's process of this node (raylet) has not answered since" in str(s.watch._lost.result())

    asyncio.run(scenario())


def test_a_node_process_that_has_ended_ends_the_run_before_ray_is_called_again(scene):
    s = scene()

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        s.node_lives = False
        with pytest.raises(RayLost, match=r"of this node \(raylet\) has ended; start Ray again .*--resume"):
            await s.watch.guard(asyncio.sleep(60))
        assert s.watch.head_is_lost

    asyncio.run(scenario())


@pytest.mark.parametrize("loop_ends", [True, False])
def test_a_loop_that_is_blocked_in_a_call_of_ray_is_ended_with_the_same_line(scene, monkeypatch, loop_ends):
    s, ended = scene(), []
    monkeypatch.setattr("cluster.processes.heartbeats.BLOCKED_S", 0.01)
    monkeypatch.setattr("cluster.processes.heartbeats.kill_here", lambda actors: ended.append("actors"))
    monkeypatch.setattr("cluster.processes.heartbeats.end_at_once", ended.append)
    if loop_ends:
        s.watch._ended.set()
    s.watch.end_if_blocked([], RayLost("Ray's head is gone"))
    assert ended == ([] if loop_ends else ["actors", "error: Ray's head is gone"])


def test_work_ends_with_whoever_awaits_its_guard(scene):
    s = scene()

    async def scenario():
        s.watch._loop = asyncio.get_running_loop()
        s.watch._lost = s.watch._loop.create_future()
        ended = []

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        guarded = asyncio.create_task(s.watch.guard(work()))
        await asyncio.sleep(0.01)
        guarded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guarded
        assert ended == [True]

    asyncio.run(scenario())
