"""Leases become groups, late ones go back, and an abort leaves nothing behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from actors.admission import KVAdmission
from actors.config import RolloutConfig
from actors.faults import DeadlineMissed, EngineDied, FaultKind, FaultyGroup
from actors.rollout import Sample, Sampling
from actors.worker import GroupWorker
from curriculum.task import Task
from curriculum.task_table import TaskColumns, TaskTable

SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=20)
WHOLE = Sample(token_ids=(7, 8), logprobs=(-0.5, -0.25), finish_reason="stop", versions=((0, "3"),))
TASK = Task(
    task_id="t1",
    data_source="test",
    question="who?",
    answers=("alice",),
    prompt_ids=np.array([4, 5, 6], np.int32),
    phase=0,
)
LATE = replace(WHOLE, finish_reason="deadline")


class FakeLeases:
    """Hands out `leases` in order; a requeued one comes first."""

    def __init__(self, *leases):
        self.waiting = list(leases)
        self.num_leased = 0
        self.requeued = []
        self._held = {}

    async def lease(self):
        if not self.waiting:
            return None
        self.num_leased += 1
        lease = self.waiting.pop(0)
        self._held[lease.lease_id] = lease
        return lease

    async def requeue(self, lease_id):
        self.requeued.append(lease_id)
        lease = self._held.pop(lease_id)
        self.waiting.insert(0, replace(lease, num_requeues=lease.num_requeues + 1))


def worker(engine, leases, *, capacity_tokens=1000, **config):
    return GroupWorker(
        name="rollout-0",
        engine=engine,
        leases=leases,
        admission=KVAdmission(
            capacity_tokens=capacity_tokens,
            block_tokens=1,
            max_sequences=1000,
            max_prompt_tokens=6,
            max_response_tokens=20,
        ),
        config=RolloutConfig(group_size=2, max_response_tokens=20, **config),
        run_seed=0,
        tasks=TaskTable(TaskColumns.of([TASK])),
    )


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_lease_becomes_a_group_and_the_engine_says_how_much_it_holds(fake_engine, lease):
    w = worker(fake_engine([WHOLE, WHOLE]), FakeLeases(lease))
    group = asyncio.run(w.next_group(SAMPLING))
    assert (group.task.task_id, group.lease.lease_id, len(group.trajectories)) == ("t1", 9, 2)
    assert w.num_slots == 1000 // (3 + 2 * 8), "a prompt of 3 and two answers of 8, which the mean is after two of 2"


def test_without_a_lease_there_is_no_group(fake_engine):
    assert asyncio.run(worker(fake_engine([]), FakeLeases()).next_group(SAMPLING)) is None


def test_no_lease_is_taken_before_there_is_room(fake_engine, lease):
    async def session():
        gate = asyncio.Event()
        leases = FakeLeases(lease, replace(lease, lease_id=10))
        w = worker(fake_engine([WHOLE, WHOLE], gate), leases, capacity_tokens=40)
        calls = [asyncio.create_task(w.next_group(SAMPLING)) for _ in range(2)]
        await settle()
        assert leases.num_leased == 1
        gate.set()
        return [group.lease.lease_id for group in await asyncio.gather(*calls)]

    assert asyncio.run(session()) == [9, 10]


def test_a_group_that_misses_its_deadline_is_requeued_once_and_then_cut(fake_engine, lease):
    async def session():
        engine, leases = fake_engine([WHOLE, LATE]), FakeLeases(lease)
        w = worker(engine, leases, deadline_s=30.0)
        with pytest.raises(DeadlineMissed, match=r"task t1 \(lease 9\): rollout-0 missed rollout.deadline_s"):
            await w.next_group(SAMPLING)
        return engine, leases, await w.next_group(SAMPLING)

    engine, leases, group = asyncio.run(session())
    assert leases.requeued == [9]
    assert [t.finish_reason for t in group.trajectories] == ["stop", "deadline"]
    first, again = (seed for _, _, seed in engine.requests)
    assert first == again
    assert all(29.0 < timeout <= 30.0 for timeout in engine.timeouts_s)


def test_without_a_deadline_nothing_is_cut(fake_engine, lease):
    engine = fake_engine([WHOLE, WHOLE])
    asyncio.run(worker(engine, FakeLeases(lease)).next_group(SAMPLING))
    assert engine.timeouts_s == [None]


def test_a_question_outside_the_curriculum_is_cut_at_once(fake_engine, lease):
    leases = FakeLeases()
    group = asyncio.run(worker(fake_engine([WHOLE, LATE]), leases, deadline_s=30.0).answer(TASK, lease, SAMPLING))
    assert [t.finish_reason for t in group.trajectories] == ["stop", "deadline"]
    assert leases.requeued == []


def test_a_faulty_group_goes_back_until_it_has_come_back_too_often(fake_engine, lease):
    async def session():
        leases = FakeLeases(lease)
        w = worker(fake_engine([WHOLE]), leases)
        faults = []
        for _ in range(4):
            with pytest.raises(FaultyGroup) as raised:
                await w.next_group(SAMPLING)
            faults.append(raised.value.is_final)
        return faults, leases

    faults, leases = asyncio.run(session())
    assert faults == [False, False, False, True]
    assert leases.requeued == [9, 9, 9]
    assert leases.waiting == []


def test_an_error_of_the_engine_is_a_fault_of_the_group_and_final_the_second_time(fake_engine, lease):
    class Refuses:
        policy_version = 0

        async def sample(self, *arguments, **options):
            raise ValueError("the prompt has 9 tokens, but the model takes 8")

    async def session():
        leases = FakeLeases(lease)
        w = worker(Refuses(), leases)
        faults = []
        for _ in range(2):
            with pytest.raises(FaultyGroup) as raised:
                await w.next_group(SAMPLING)
            faults.append(raised.value)
        return faults, leases

    faults, leases = asyncio.run(session())
    assert [(fault.kind, fault.is_final) for fault in faults] == [
        (FaultKind.ENGINE_ERROR, False),
        (FaultKind.ENGINE_ERROR, True),
    ]
    assert faults[0].detail == "raised ValueError: the prompt has 9 tokens, but the model takes 8"
    assert leases.requeued == [9]


def test_the_death_of_an_engine_is_no_fault_of_the_group(fake_engine, lease):
    class Dies:
        policy_version = 0

        async def sample(self, *arguments, **options):
            raise EngineDied("gone")

    leases = FakeLeases(lease)
    with pytest.raises(EngineDied):
        asyncio.run(worker(Dies(), leases).next_group(SAMPLING))
    assert leases.requeued == [], "the lease is taken back when the actor has died"


def test_an_abort_ends_answers_and_waits_and_leaves_the_leases_held(fake_engine, lease):
    async def session():
        engine = fake_engine([WHOLE, WHOLE], asyncio.Event())
        leases = FakeLeases(lease, replace(lease, lease_id=10))
        w = worker(engine, leases, capacity_tokens=40)
        calls = [asyncio.create_task(w.next_group(SAMPLING)) for _ in range(2)]
        await settle()
        assert engine.num_running == 2
        await w.abort()
        return engine, leases, await asyncio.gather(*calls), w

    engine, leases, results, w = asyncio.run(session())
    assert results == [None, None]
    assert (engine.num_running, leases.requeued, leases.num_leased) == (0, [], 1)
    assert w.num_slots == 1


def test_after_an_abort_the_worker_works_on(fake_engine, lease):
    async def session():
        engine = fake_engine([WHOLE, WHOLE], asyncio.Event())
        leases = FakeLeases(lease, replace(lease, lease_id=10))
        w = worker(engine, leases, capacity_tokens=40)
        call = asyncio.create_task(w.next_group(SAMPLING))
        await settle()
        await w.abort()
        await call
        engine.gate.set()
        return await w.next_group(SAMPLING)

    group = asyncio.run(session())
    assert group.lease.lease_id == 10


def test_a_call_that_is_cancelled_leaves_nothing_in_the_engine(fake_engine, lease):
    async def session():
        engine = fake_engine([WHOLE, WHOLE], asyncio.Event())
        call = asyncio.create_task(worker(engine, FakeLeases(lease)).next_group(SAMPLING))
        await settle()
        assert engine.num_running == 2
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        return engine.num_running

    assert asyncio.run(session()) == 0
