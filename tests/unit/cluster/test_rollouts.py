"""One group at a time through rollout and judge actors, on stand-ins for their handles."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from actors.faults import DeadlineMissed, FaultKind, FaultyGroup
from actors.rollout import Sampling
from actors.trajectory import GroupMeta
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.processes.suspicion import CallFailed, SuspectedCalls
from cluster.roles import GroupLost, TaskFailed
from cluster.run.recovery import CoordinatorLost
from cluster.run.waits import Waits
from curriculum.errors import UserError
from curriculum.leases import LeaseBook
from curriculum.task import TaskLease

SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=8)


class FakeMethod:
    """`handle.method.options(...).remote(...)` of a coroutine function."""

    def __init__(self, call) -> None:
        self._call = call

    def options(self, *, num_returns):
        return FakeMethod(lambda *arguments: self._several(num_returns, *arguments))

    def remote(self, *arguments):
        return self._call(*arguments)

    def _several(self, num_returns, *arguments):
        """One reference per result; the last one, the group, is never awaited here."""
        others = [asyncio.get_running_loop().create_future() for _ in range(num_returns - 2)]

        async def first():
            result, *rest = await self._call(*arguments)
            for future, value in zip(others, rest, strict=False):
                future.set_result(value)
            return result

        return first(), *others, "reference"


class FakeRolloutHandle:
    """Answers with the next of `answers`, raises it if it is an error; `gate` holds the answers back."""

    def __init__(self, answers, gate=None, num_slots=1) -> None:
        self.answers = list(answers)
        self.gate = gate
        self.num_calls = 0
        self.slots = num_slots
        self.num_aborts = 0
        self.leases = []
        self.next_group = FakeMethod(self._next_group)
        self.answer = FakeMethod(self._answer)
        self.num_slots = FakeMethod(self._say_slots)
        self.abort = FakeMethod(self._abort)
        self.ready = FakeMethod(self._ready)

    async def _next_group(self, sampling):
        return await self._next_answer(), self.slots, "group"

    async def _next_answer(self):
        self.num_calls += 1
        answer = self.answers.pop(0)
        if self.gate:
            await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _answer(self, task, lease, sampling):
        self.leases.append(lease)
        return await self._next_answer(), "group"

    async def _say_slots(self):
        return self.slots

    async def _abort(self):
        self.num_aborts += 1

    async def _ready(self):
        return 1


class FakeJudgeHandle:
    def __init__(self, score) -> None:
        self.score_group = FakeMethod(self._score)
        self._scores = score

    async def _score(self, group):
        assert group == "reference"
        if isinstance(self._scores, Exception):
            raise self._scores
        return self._scores


def supervised(name, handle, log=None):
    return SupervisedActor(
        name,
        handle,
        startup_timeout_s=5.0,
        on_fault=lambda **fields: log.append(fields["action"]) if log is not None else None,
    )


@pytest.fixture
def meta(make_group):
    def build(lease_id):
        lease = TaskLease(lease_id=lease_id, task_id=f"t{lease_id}", attempt=0, replayed=False, phase=0)
        return GroupMeta.of(make_group(lease, 2))

    return build


def rollouts(actors, make_score, scores=(1.0, 0.0), faults=None):
    judge = FakeJudgeHandle(scores if isinstance(scores, Exception) else tuple(map(make_score, scores)))
    tell = (lambda **fields: faults.append(fields)) if faults is not None else (lambda **fields: None)
    return RayRollouts(actors, [supervised("judge-0", judge)], on_fault=tell)


def test_a_group_arrives_with_its_scores_and_its_reference(meta, make_score):
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([meta(7)], num_slots=5))], make_score)
    group = asyncio.run(r.next_group(SAMPLING))
    assert group is not None
    assert (group.lease_id, group.group, group.rewards) == (7, "reference", (1.0, 0.0))
    assert r.num_slots == 5, "the engine said so with its group"


def test_without_a_lease_there_is_no_group(make_score):
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([None]))], make_score)
    assert asyncio.run(r.next_group(SAMPLING)) is None


def test_the_least_busy_actor_is_asked(meta, make_score):
    async def ask():
        gate = asyncio.Event()
        handles = [FakeRolloutHandle([meta(0), meta(1)], gate), FakeRolloutHandle([meta(2), meta(3)], gate)]
        r = rollouts([supervised(f"rollout-{i}", handle) for i, handle in enumerate(handles)], make_score)
        calls = [asyncio.create_task(r.next_group(SAMPLING)) for _ in range(4)]
        await asyncio.sleep(0)
        assert [handle.num_calls for handle in handles] == [2, 2]
        gate.set()
        assert r.num_slots == 2, "one each until they say more"
        return await asyncio.gather(*calls)

    assert [group.lease_id for group in asyncio.run(ask())] == [0, 2, 1, 3]


def test_a_pull_whose_actor_died_tries_again_after_the_repair(meta, make_score):
    log = []
    handle = FakeRolloutHandle([ActorUnavailableError("killed", actor_id=None), meta(4)])
    r = rollouts([supervised("rollout-0", handle, log)], make_score)
    assert asyncio.run(r.next_group(SAMPLING)).lease_id == 4
    assert log == ["restarting", "back"]


def test_a_group_that_vanishes_before_it_is_scored_is_named(meta, make_score):
    lost = ObjectLostError("00ff", owner_address=None, call_site="")
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([meta(5)]))], make_score, scores=lost)
    with pytest.raises(GroupLost, match=r"task t5 \(lease 5\) was lost .*ObjectLostError.*--resume"):
        asyncio.run(r.next_group(SAMPLING))


def remote(error):
    """As Ray raises it here: with the text of a remote traceback."""
    return RayTaskError("next_group", "remote traceback", error).as_instanceof_cause()


def fault(num_requeues=0):
    return remote(FaultyGroup(FaultKind.MISSING_SAMPLES, "returned 1 of 2 samples", 3, "t3", "rollout-0", num_requeues))


def test_every_engine_says_at_the_start_how_much_it_holds(make_score):
    handles = [FakeRolloutHandle([], num_slots=4), FakeRolloutHandle([], num_slots=2)]
    r = rollouts([supervised(f"rollout-{i}", handle) for i, handle in enumerate(handles)], make_score)
    asyncio.run(r.learn_slots())
    assert r.num_slots == 6


def test_an_engine_with_more_room_gets_more_calls(make_score):
    async def ask():
        gate = asyncio.Event()
        handles = [FakeRolloutHandle([None] * 6, gate, num_slots=4), FakeRolloutHandle([None] * 6, gate, num_slots=2)]
        r = rollouts([supervised(f"rollout-{i}", handle) for i, handle in enumerate(handles)], make_score)
        await r.learn_slots()
        calls = [asyncio.create_task(r.next_group(SAMPLING)) for _ in range(6)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*calls)
        return [handle.num_calls for handle in handles]

    assert asyncio.run(ask()) == [4, 2]


def test_late_and_faulty_groups_are_counted_told_and_sampled_again(meta, make_score):
    faults = []
    handle = FakeRolloutHandle([fault(), remote(DeadlineMissed(3, "t3", "rollout-0")), meta(3)])
    r = rollouts([supervised("rollout-0", handle)], make_score, faults=faults)
    assert asyncio.run(r.next_group(SAMPLING)).lease_id == 3
    assert (r.num_late, r.num_faulty) == (1, 1)
    assert [(f["kind"], f["engine"], f["lease_id"], f["action"]) for f in faults] == [
        ("missing_samples", "rollout-0", 3, "requeued"),
        ("deadline", "rollout-0", 3, "requeued"),
    ]


def test_a_lease_that_fails_again_and_again_is_lost(make_score):
    faults = []
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([fault(num_requeues=3)]))], make_score, faults=faults)
    with pytest.raises(TaskFailed, match=r"task t3 \(lease 3\) .*: rollout-0 returned 1 of 2 samples, as"):
        asyncio.run(r.next_group(SAMPLING))
    assert [f["action"] for f in faults] == ["quarantined"]


def test_a_held_out_question_that_came_back_faulty_is_asked_again_and_given_up_in_the_end(meta, make_score, task):
    handle = FakeRolloutHandle([fault(), meta(0)])
    r = rollouts([supervised("rollout-0", handle)], make_score)
    (answered,) = asyncio.run(r.answer([task("t0", 0)], SAMPLING))
    assert answered.lease_id == 0
    assert [lease.num_requeues for lease in handle.leases] == [0, 1]
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([fault(i) for i in range(4)]))], make_score)
    assert asyncio.run(r.answer([task("t0", 0)], SAMPLING)) == [], "the others go on without it"


def test_an_abort_reaches_every_engine(make_score):
    handles = [FakeRolloutHandle([]), FakeRolloutHandle([])]
    r = rollouts([supervised(f"rollout-{i}", handle) for i, handle in enumerate(handles)], make_score)
    asyncio.run(r.abort())
    assert [handle.num_aborts for handle in handles] == [1, 1]


def test_an_engine_whose_call_to_the_coordinator_failed_is_not_blamed(make_score):
    wrapped = RayTaskError("next_group", "traceback", ActorDiedError()).as_instanceof_cause()
    assert isinstance(wrapped, RayActorError)
    faults = []
    actor = supervised("rollout-0", FakeRolloutHandle([wrapped]), log=faults)
    with pytest.raises(CoordinatorLost, match="the coordinator died"):
        asyncio.run(rollouts([actor], make_score).next_group(SAMPLING))
    assert (faults, actor.lost, actor.incarnation) == ([], False, 0)


def test_every_group_that_arrives_is_progress_of_what_is_waited_for(meta, make_score):
    seconds = [0.0]
    waits = Waits(10.0, now=lambda: seconds[0])
    actor, judge = supervised("rollout-0", FakeRolloutHandle([meta(7)])), FakeJudgeHandle((make_score(1.0),) * 2)
    r = RayRollouts([actor], [supervised("judge-0", judge)], on_fault=lambda **_: None, waits=waits)
    with waits.on("a batch") as wait:
        seconds[0] = 8.0
        asyncio.run(r.next_group(SAMPLING))
        assert wait.since == 8.0


class FakeMortal:
    """A handle whose method `score_group` kills it, raises, or answers, as `ends` says for each group."""

    def __init__(self, ends):
        self.ends = ends
        self.running = set()
        self.beside = {}
        self.score_group = FakeMethod(self._score)
        self.ready = FakeMethod(self._ready)
        self.death = None

    async def _ready(self):
        while self.running:  # a death ends every call before the actor is back
            await asyncio.sleep(0)
        return 1

    async def _score(self, group):
        self.death = self.death or asyncio.get_running_loop().create_future()
        self.running.add(group)
        self.beside.setdefault(group, []).append(len(self.running) - 1)
        try:
            for tick in range(5):
                await asyncio.sleep(0)
                if self.death.done():
                    raise ActorUnavailableError("killed", actor_id=None)
                if tick < 2 or self.ends[group] != "dies":
                    continue
                self.death.set_result(None)
                raise ActorUnavailableError("killed", actor_id=None)
            if isinstance(self.ends[group], Exception):
                raise remote(self.ends[group])
            return self.ends[group]
        finally:
            self.running.discard(group)
            if not self.running and self.death.done():
                self.death = None


def calls_of(handle, groups):
    async def ask():
        calls = SuspectedCalls(supervised("judge-0", handle))

        async def call(group):
            return await calls(lambda handle: handle.score_group.remote(group))

        return await asyncio.gather(*map(call, groups), return_exceptions=True)

    return asyncio.run(ask())


def test_a_call_that_kills_its_actor_again_when_it_is_alone_is_given_up_and_no_other_is():
    handle = FakeMortal({"a": 1, "poison": "dies", "b": 2})
    first, failed, last = calls_of(handle, ["a", "poison", "b"])
    assert (first, last) == (1, 2)
    assert isinstance(failed, CallFailed)
    assert str(failed) == "judge-0 died, 2 times, at last with nothing else to do"
    assert {group: beside[1:] for group, beside in handle.beside.items()} == {"a": [0], "poison": [0], "b": [0]}


def test_a_call_that_raises_twice_is_given_up_but_an_error_that_a_person_can_put_right_ends_the_run():
    failed, done = calls_of(FakeMortal({"a": KeyError("truth"), "b": 2}), ["a", "b"])
    assert str(failed) == "judge-0 raised KeyError: 'truth', 2 times, at last with nothing else to do"
    assert done == 2
    (told,) = calls_of(FakeMortal({"a": UserError("reward.judge.url: refused")}), ["a"])
    assert isinstance(told, UserError)


def test_a_task_that_a_judge_dies_of_goes_to_quarantine(meta, make_score):
    faults = []
    handle = FakeMortal({"reference": "dies"})
    r = RayRollouts(
        [supervised("rollout-0", FakeRolloutHandle([meta(4)]))],
        [supervised("judge-0", handle)],
        on_fault=lambda **fields: faults.append(fields),
    )
    with pytest.raises(TaskFailed) as failed:
        asyncio.run(r.next_group(SAMPLING))
    assert (failed.value.task_id, failed.value.lease_id, failed.value.actor) == ("t4", 4, "judge-0")
    assert [(fault["task_id"], fault["actor"], fault["action"]) for fault in faults] == [
        ("t4", "judge-0", "quarantined")
    ]


def test_a_lease_that_kills_its_engines_goes_to_quarantine_and_the_budget_is_left_for_others(meta, make_score):
    book = LeaseBook(timeout_s=60.0, now=lambda: 0.0)
    book.open("t0", phase=0, replayed=False)

    async def release(name):
        return book.release(name)

    class Pulls(FakeRolloutHandle):
        async def _next_answer(self):
            lease = book.hand_out("rollout-0")
            if lease is None:
                return None
            raise ActorUnavailableError("killed", actor_id=None)

    async def ask():
        log = []
        actor = SupervisedActor(
            "rollout-0",
            Pulls([]),
            startup_timeout_s=5.0,
            on_fault=lambda **fields: log.append(fields["action"]),
            before_restart=lambda name: r.take_back(name),
        )
        r = RayRollouts([actor], [], on_fault=lambda **fields: log.append(fields["action"]), release=release)
        with pytest.raises(TaskFailed, match="rollout-0 died while it answered it, as an engine did before"):
            await r.next_group(SAMPLING)
        assert await r.next_group(SAMPLING) is None
        return log

    assert asyncio.run(ask()) == ["restarting", "back", "restarting", "back", "quarantined"]
