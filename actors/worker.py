"""The work of a rollout actor, without Ray and vLLM: lease tasks, have them answered, requeue those that are late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from actors.admission import KVAdmission, Reservation
from actors.config import RolloutConfig
from actors.faults import DeadlineMissed, EngineDied, FaultKind, FaultyGroup
from actors.rollout import Engine, Sampling, sample_group
from actors.trajectory import Group
from curriculum.errors import one_line
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskTable

MAX_REQUEUES = 1
"""Times that a group which missed the deadline is sampled again before its unfinished answers are cut."""


class Leases(Protocol):
    """The coordinator, as one holder of leases sees it."""

    async def lease(self) -> TaskLease | None:
        """Return the next lease; None when there is none to give."""
        ...

    async def requeue(self, lease_id: int) -> None:
        """Give a lease back unanswered."""
        ...


class GroupWorker:
    """Worker that answers groups on one engine, as many at a time as its KV cache holds.

    Consumes: leases.  Waits for: room in the cache, then the engine.  Unblocked by: answers that end, and `abort`.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        leases: Leases,
        admission: KVAdmission,
        config: RolloutConfig,
        tasks: TaskTable,
        run_seed: int,
    ) -> None:
        self._name = name
        self._engine = engine
        self._leases = leases
        self._admission = admission
        self._config = config
        self._run_seed = run_seed
        self._tasks = tasks
        self._work: set[asyncio.Task[Group | None]] = set()

    @property
    def num_slots(self) -> int:
        """Groups that the engine is expected to hold at a time."""
        return self._admission.num_slots(self._config.group_size)

    async def next_group(self, sampling: Sampling) -> Group | None:
        """Take a lease as soon as the engine has room for a group, and answer it.

        Returns:
            the group; None without a lease, or after `abort`.

        Raises:
            DeadlineMissed: the group took too long; its lease was requeued.
            FaultyGroup: the answers of the engine cannot be used; the lease was requeued, unless the error is final.
        """
        return await self._abortable(self._next_group(sampling))

    async def answer(self, task: Task, lease: TaskLease, sampling: Sampling) -> Group | None:
        """Answer one task outside the curriculum; answers that miss the deadline are cut the first time.

        Returns:
            the group; None after `abort`.

        Raises:
            FaultyGroup: the answers of the engine cannot be used.
        """
        return await self._abortable(self._answer(task, lease, sampling))

    async def abort(self) -> None:
        """End every answer and every wait for one, and leave nothing in the engine.

        Leases that were being answered stay held, for the caller to withdraw; a resumed run leases them again.
        """
        work = list(self._work)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _next_group(self, sampling: Sampling) -> Group | None:
        async with self._admission.turn(sampling.num_samples, sampling.max_response_tokens):
            lease = await self._leases.lease()
            if lease is None:
                return None
            start = time.monotonic()
            task = self._tasks[lease.task_id]
            reservation = await self._reserve(task, sampling)
        try:
            group = await self._sample(task, lease, sampling, reservation, start)
        except FaultyGroup as fault:
            if not fault.is_final:
                await self._leases.requeue(lease.lease_id)
            raise
        is_cut = any(trajectory.finish_reason.is_cut for trajectory in group.trajectories)
        if is_cut and lease.num_requeues < MAX_REQUEUES:
            await self._leases.requeue(lease.lease_id)
            raise DeadlineMissed(lease.lease_id, lease.task_id, self._name)
        return group

    async def _answer(self, task: Task, lease: TaskLease, sampling: Sampling) -> Group:
        async with self._admission.turn(sampling.num_samples, sampling.max_response_tokens):
            start = time.monotonic()
            reservation = await self._reserve(task, sampling)
        return await self._sample(task, lease, sampling, reservation, start)

    async def _reserve(self, task: Task, sampling: Sampling) -> Reservation:
        num_tokens = len(task.prompt_ids)
        return await self._admission.reserve(num_tokens, sampling.num_samples, sampling.max_response_tokens)

    async def _sample(
        self, task: Task, lease: TaskLease, sampling: Sampling, reservation: Reservation, start: float
    ) -> Group:
        """Sample an admitted group, then free its share of the cache.

        Raises:
            FaultyGroup: the answers of the engine cannot be used, or it raised an error instead.
            EngineDied: its process is gone.
        """
        deadline_s = self._config.deadline_s
        try:
            return await sample_group(
                self._engine,
                task,
                lease,
                sampling,
                run_seed=self._run_seed,
                engine_name=self._name,
                timeout_s=None if deadline_s is None else max(0.0, start + deadline_s - time.monotonic()),
                on_finished=reservation.finish_answer,
            )
        except (FaultyGroup, EngineDied):
            raise
        except Exception as error:
            detail = f"raised {one_line(error)}"
            raise FaultyGroup(
                FaultKind.ENGINE_ERROR, detail, lease.lease_id, task.task_id, self._name, lease.num_requeues
            ) from error
        finally:
            self._admission.release(reservation)

    async def _abortable(self, work: Coroutine[Any, Any, Group | None]) -> Group | None:
        """Await work that `abort` may end; if the wait is cancelled, cancel the work and wait for its end."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        try:
            await asyncio.wait({task})
            return None if task.cancelled() else task.result()
        finally:
            self._work.discard(task)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
