"""Coordinator, stand-ins for the rollout actors, and the driver's side of them: what `data_plane.py` runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.coordinator_leases import CoordinatorLeases
from actors.trajectory import FinishReason, Group, GroupMeta, Trajectory, VersionSpan
from benchmarks.line import say
from cluster.processes.curriculum import ray_curriculum
from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.task import Task, TaskEntry, TaskLease, TaskOutcome
from curriculum.task_table import TaskColumns, TaskTable

COORDINATOR = "coordinator"
GROUPS_PER_PULL = 16


class _Coordinator(CoordinatorActor):
    """The product's actor, which also tells its memory."""

    def usage(self) -> tuple[float, float]:
        """Private memory in MB, and CPU seconds since the start."""
        return _private_memory_mb(), time.process_time()


class _Holder:
    """Leases as a rollout actor does."""

    def __init__(self, name: str, tasks: TaskColumns, group_size: int, response_tokens: int) -> None:
        coordinator: Any = ray.get_actor(COORDINATOR)
        self._leases = CoordinatorLeases(coordinator, name)
        self._tasks = TaskTable(tasks)
        self._answers = make_answers(group_size, response_tokens)

    async def lease(self, num_leases: int, in_flight: int) -> list[tuple[int, str]]:
        """(lease id, task id) of the next leases."""
        asked = iter(range(num_leases))
        leases: list[TaskLease] = []

        async def pull() -> None:
            for _ in asked:
                leases.append(_given(await self._leases.lease()))

        await asyncio.gather(*[pull() for _ in range(in_flight)])
        return [(lease.lease_id, lease.task_id) for lease in leases]

    async def next_groups(self, num_groups: int) -> tuple[Any, ...]:
        """The metas, then the groups: `RolloutActor.next_group` several times over."""
        leases = [_given(lease) for lease in await asyncio.gather(*[self._leases.lease() for _ in range(num_groups)])]
        groups = [make_group(self._tasks[lease.task_id], lease, self._answers) for lease in leases]
        return tuple(GroupMeta.of(group) for group in groups), *groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sizes of what goes through the plane."""

    num_tasks: int
    prompt_tokens: int
    response_tokens: int
    group_size: int
    batch_size: int
    """Groups of a step."""
    num_holders: int
    """Processes that lease."""
    num_in_flight: int
    """Leases that a holder asks for at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What a long run left behind."""

    seconds: float
    memory_mb: dict[str, list[tuple[int, float]]]
    """By process: (groups so far, private memory in MB)."""
    growth_mb_per_group: dict[str, float]
    store_bytes_peak: int
    store_bytes_left: int


class Plane:
    """Coordinator, holders, and the driver's side of them."""

    def __init__(self, load: Load, *, seed: int) -> None:
        tasks = make_tasks(load.num_tasks, load.prompt_tokens)
        self._columns = ray.put(TaskColumns.of(tasks))
        phase = PhaseConfig(name="only", max_prompt_tokens=10**6, end=FixedSteps(steps=10**9))
        self._coordinator = (
            ray.remote(_Coordinator)
            .options(name=COORDINATOR, num_cpus=0)
            .remote(tasks=[TaskEntry.of(task) for task in tasks], config=CurriculumConfig(phases=(phase,)), seed=seed)
        )
        self._curriculum = ray_curriculum(self._coordinator)
        holder = ray.remote(_Holder).options(num_cpus=0)
        self._holders = [
            holder.remote(f"holder-{i}", self._columns, load.group_size, load.response_tokens)
            for i in range(load.num_holders)
        ]
        self._batch = load.batch_size
        self._in_flight = load.num_in_flight
        self._step = 0
        self.cpu_us_per_group: dict[str, float] = {}
        """Of the latest repeat, by process."""

    async def groups_per_second(self, num_groups: int, repeats: int) -> list[float]:
        """Of every repeat, after a warm-up."""
        await self._pass_metadata(4 * self._batch * len(self._holders))
        rates = []
        for repeat in range(repeats):
            start, cpu_s = time.perf_counter(), time.process_time()
            _, coordinator_cpu_s = await self._coordinator.usage.remote()
            done = await self._pass_metadata(num_groups)
            rates.append(done / (time.perf_counter() - start))
            memory_mb, coordinator_now_s = await self._coordinator.usage.remote()
            self.cpu_us_per_group = {
                "coordinator": 1e6 * (coordinator_now_s - coordinator_cpu_s) / done,
                "driver": 1e6 * (time.process_time() - cpu_s) / done,
            }
            say(f"metadata, repeat {repeat}: {rates[-1]:.0f} groups/s, CPU {self.cpu_us_per_group} us, "
                f"{memory_mb:.0f} MB in the coordinator")  # fmt: skip
        return rates

    async def _pass_metadata(self, num_groups: int) -> int:
        """Two streams of batches per holder, so that no holder waits for the driver; returns the groups."""
        streams = 2 * self._holders
        num_batches = max(1, num_groups // (self._batch * len(streams)))
        await asyncio.gather(*[self._serve(holder, num_batches) for holder in streams])
        return num_batches * self._batch * len(streams)

    async def _serve(self, holder: Any, num_batches: int) -> None:
        for _ in range(num_batches):
            await self._curriculum.open_stream(self._batch)
            answered = await holder.lease.remote(self._batch, self._in_flight)
            kept = await asyncio.gather(*[self._curriculum.keep(pair) for pair in answered])
            assert all(kept), "a lease was answered twice"
            await self._finish_step(answered)

    async def _finish_step(self, answered: Sequence[tuple[int, str]]) -> None:
        await self._curriculum.report([_outcome(lease_id, task_id) for lease_id, task_id in answered])
        await self._curriculum.finish_step(self._step, num_trained_groups=len(answered))
        self._step += 1

    async def soak(self, num_groups: int) -> Soak:
        """Steps of real groups in the object store; samples memory twenty times."""
        start, store_before = time.perf_counter(), await _settled_store_bytes()
        memory: dict[str, list[tuple[int, float]]] = {"coordinator": [], "driver": []}
        rounds, peak = max(20, num_groups // self._batch), 0
        for index in range(1, rounds + 1):
            groups = await self._soak_step()
            if index % (rounds // 20) == 0:
                peak = max(peak, _store_bytes() - store_before)
                memory["coordinator"].append((index * self._batch, (await self._coordinator.usage.remote())[0]))
                memory["driver"].append((index * self._batch, _private_memory_mb()))
                say(f"soak: {index * self._batch} groups, {memory['coordinator'][-1][1]:.1f} MB in the coordinator, "
                    f"{memory['driver'][-1][1]:.1f} MB in the driver")  # fmt: skip
            del groups
        return Soak(
            seconds=time.perf_counter() - start,
            memory_mb=memory,
            growth_mb_per_group={name: _slope(points[len(points) // 2 :]) for name, points in memory.items()},
            store_bytes_peak=peak,
            store_bytes_left=await _store_bytes_down_to(store_before) - store_before,
        )

    async def _soak_step(self) -> list[Any]:
        """One batch; returns the references to its groups."""
        await self._curriculum.open_stream(self._batch)
        shares = range(0, self._batch, GROUPS_PER_PULL)
        pulled = await asyncio.gather(
            *[
                self._pull(self._holders[i % len(self._holders)], min(GROUPS_PER_PULL, self._batch - start))
                for i, start in enumerate(shares)
            ]
        )
        await self._finish_step([_answered(meta) for metas, _ in pulled for meta in metas])
        return [group for _, groups in pulled for group in groups]

    async def _pull(self, holder: Any, num_groups: int) -> tuple[Sequence[GroupMeta], Sequence[Any]]:
        metas, *groups = holder.next_groups.options(num_returns=1 + num_groups).remote(num_groups)
        metas = await metas
        await asyncio.gather(*[self._curriculum.keep((meta.lease.lease_id, meta.lease.task_id)) for meta in metas])
        return metas, groups


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """MB per group, least squares."""
    groups, megabytes = zip(*points, strict=True)
    return float(np.polyfit(groups, megabytes, 1)[0])


def _private_memory_mb() -> float:
    """RssAnon of this process: what the object store maps is not in it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


def _store_bytes() -> int:
    key = "object_store_memory"
    return int(ray.cluster_resources()[key] - ray.available_resources().get(key, 0))


async def _settled_store_bytes() -> int:
    """Once Ray has told the same for three seconds; it updates about once a second."""
    seen = [_store_bytes()]
    while len(seen) < 4 or len(set(seen[-4:])) > 1:
        await asyncio.sleep(1)
        seen.append(_store_bytes())
    return seen[-1]


def _given(lease: TaskLease | None) -> TaskLease:
    assert lease is not None, "fewer leases were opened than asked for"
    return lease


async def _store_bytes_down_to(level: int) -> int:
    """What is held once it is back at `level`, or after half a minute; frees go out in batches, and news take time."""
    for _ in range(30):
        if _store_bytes() <= level:
            break
        await asyncio.sleep(1)
    return _store_bytes()


def make_tasks(count: int, prompt_tokens: int) -> list[Task]:
    """Tasks with one prompt, which is not shared in the table."""
    prompt_ids = np.arange(prompt_tokens, dtype=np.int32)
    return [
        Task(task_id=f"task-{i:08d}", data_source="musique", question="who?", answers=("x",), prompt_ids=prompt_ids,
             phase=0)
        for i in range(count)
    ]  # fmt: skip


def make_answers(group_size: int, response_tokens: int) -> tuple[Trajectory, ...]:
    """G answers of random tokens."""
    rng = np.random.default_rng(0)
    return tuple(
        Trajectory(
            response_ids=rng.integers(0, 150_000, response_tokens, dtype=np.int32),
            rollout_logprobs=-rng.random(response_tokens, dtype=np.float32),
            finish_reason=FinishReason.STOP,
            versions=(VersionSpan(start=0, version=0),),
        )
        for _ in range(group_size)
    )


def make_group(task: Task, lease: TaskLease, answers: tuple[Trajectory, ...]) -> Group:
    """What a rollout actor would return for a lease."""
    return Group(
        task=task, lease=lease, trajectories=answers, temperature=0.7, max_response_tokens=10_000, engine="holder"
    )


def _answered(meta: GroupMeta) -> tuple[int, str]:
    return meta.lease.lease_id, meta.lease.task_id


def _outcome(lease_id: int, task_id: str) -> TaskOutcome:
    return TaskOutcome(lease_id=lease_id, task_id=task_id, accuracies=(0.0, 1.0))
