"""One group at a time through rollout and judge actors, on stand-ins for their handles."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorUnavailableError, ObjectLostError

from actors.rollout import Sampling
from actors.trajectory import GroupMeta
from cluster.handles import RayRollouts
from cluster.roles import GroupLost
from cluster.supervision import SupervisedActor
from curriculum.task import TaskLease

SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=8)


class FakeMethod:
    """`handle.method.options(...).remote(...)` of a coroutine function."""

    def __init__(self, call) -> None:
        self._call = call

    def options(self, *, num_returns):
        assert num_returns == 2
        return FakeMethod(lambda *arguments: (self._call(*arguments), "reference"))

    def remote(self, *arguments):
        return self._call(*arguments)


class FakeRolloutHandle:
    """Answers with the next of `answers`, raises it if it is an error; `gate` holds the answers back."""

    def __init__(self, answers, gate=None) -> None:
        self.answers = list(answers)
        self.gate = gate
        self.num_calls = 0
        self.next_group = FakeMethod(self._next_group)
        self.ready = FakeMethod(self._ready)

    async def _next_group(self, sampling):
        self.num_calls += 1
        answer = self.answers.pop(0)
        if self.gate:
            await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

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
        return GroupMeta.of(make_group(lease, 2), 0.1)

    return build


def rollouts(actors, make_score, scores=(1.0, 0.0)):
    judge = FakeJudgeHandle(scores if isinstance(scores, Exception) else tuple(map(make_score, scores)))
    return RayRollouts(actors, [supervised("judge-0", judge)], max_groups_in_flight=3)


def test_a_group_arrives_with_its_scores_and_its_reference(meta, make_score):
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([meta(7)]))], make_score)
    group = asyncio.run(r.next_group(SAMPLING))
    assert group is not None
    assert (group.meta.lease_id, group.group, group.rewards) == (7, "reference", (1.0, 0.0))
    assert r.num_slots == 3


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
        assert r.num_slots == 6
        return await asyncio.gather(*calls)

    assert [group.meta.lease_id for group in asyncio.run(ask())] == [0, 2, 1, 3]


def test_a_pull_whose_actor_died_tries_again_after_the_repair(meta, make_score):
    log = []
    handle = FakeRolloutHandle([ActorUnavailableError("killed", actor_id=None), meta(4)])
    r = rollouts([supervised("rollout-0", handle, log)], make_score)
    assert asyncio.run(r.next_group(SAMPLING)).meta.lease_id == 4
    assert log == ["restarting", "back"]


def test_a_group_that_vanishes_before_it_is_scored_is_named(meta, make_score):
    lost = ObjectLostError("00ff", owner_address=None, call_site="")
    r = rollouts([supervised("rollout-0", FakeRolloutHandle([meta(5)]))], make_score, scores=lost)
    with pytest.raises(GroupLost, match=r"task t5 \(lease 5\) was lost .*ObjectLostError.*--resume"):
        asyncio.run(r.next_group(SAMPLING))
