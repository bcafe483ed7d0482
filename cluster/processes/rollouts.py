"""Rollout and judge actors, as the loop calls them: it gets references, the tokens stay in the object store."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.faults import DeadlineMissed, FaultyGroup
from actors.rollout import Sampling
from actors.trajectory import Group, GroupMeta
from cluster.group import ScoredGroup
from cluster.processes.supervision import ActorLost, SupervisedActor
from cluster.processes.suspicion import CallFailed, SuspectedCalls
from cluster.processes.turns import Side, Turns
from cluster.roles import GroupLost, TaskFailed
from cluster.run.recovery import CoordinatorLost
from cluster.run.waits import Waits
from curriculum.task import Task, TaskLease
from reward.circuit import JudgeEvent


class RayRollouts:
    """Rollout actors that sample and judge actors that score; a group is scored as soon as it is sampled.

    Consumes: leases, through the rollout actors.  Waits for: the slowest answer.  Unblocked by: every finished group.
    """

    def __init__(
        self,
        rollouts: Sequence[SupervisedActor],
        judges: Sequence[SupervisedActor],
        *,
        on_fault: Callable[..., None],
        release: Callable[[str], Awaitable[Sequence[TaskLease]]] | None = None,
        waits: Waits | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Take the actors.

        Args:
            rollouts: they sample.
            judges: they score.
            on_fault: called for every group that has to be sampled again, and every task that goes to quarantine.
            release: `Coordinator.release`; None without a curriculum.
            waits: hears of every group that arrives.
            turns: with the learner, on shared GPUs; None where engines have GPUs of their own.
        """
        self._turns = turns
        self._waits = waits or Waits()
        self._rollouts = rollouts
        self._judges = judges
        self._next_judge = itertools.cycle([SuspectedCalls(judge) for judge in judges])
        self._answering = {actor.name: SuspectedCalls(actor) for actor in rollouts}
        self._release = release
        self._condemned: deque[TaskFailed] = deque()
        """Leases that killed an engine again, for the callers that wait for them."""
        self._on_fault = on_fault
        self._in_flight: Counter[str] = Counter()
        """Calls of `next_group` that each actor works on."""
        self._slots: dict[str, int] = {}
        """Groups that each engine can hold, from its latest reply; 1 before the first one."""
        self.num_late = self.num_faulty = 0

    async def take_back(self, name: str) -> None:
        """Give the leases of an engine that died back; one that has killed it again goes to quarantine."""
        if self._release is None:
            return
        for lease in await self._release(name):
            reason = f"{name} died while it answered it, as an engine did before"
            self._condemned.append(TaskFailed(lease.lease_id, lease.task_id, reason, name))

    async def learn_slots(self) -> None:
        """Ask every engine how many groups it can hold; later replies come with the groups."""
        alive = self._alive()
        async with self._turn():
            slots = await asyncio.gather(*[actor.call(lambda handle: handle.num_slots.remote()) for actor in alive])
        self._slots = {actor.name: num_slots for actor, num_slots in zip(alive, slots, strict=True)}

    @property
    def num_slots(self) -> int:
        """Groups that the live engines are expected to hold at a time."""
        return sum(self._slots.get(actor.name, 1) for actor in self._alive())

    @property
    def in_flight(self) -> dict[str, int]:
        """Groups that each actor works on, by name."""
        return dict(self._in_flight)

    async def abort(self) -> None:
        """Abort every answer in every engine; calls of `next_group` return None, and their leases stay held."""
        calls = [actor.handle.abort.remote() for actor in self._rollouts if not actor.lost]
        await asyncio.gather(*calls, return_exceptions=True)  # an engine that is down has no answers

    @property
    def object_store_bytes(self) -> int:
        """Bytes in the object stores of all nodes; Ray updates the number about once a second."""
        key = "object_store_memory"
        return int(ray.cluster_resources().get(key, 0) - ray.available_resources().get(key, 0))

    async def sleep(self) -> None:
        """Let every engine give its memory back; `Turns` calls it."""
        await asyncio.gather(
            *[self._on_engine(actor, lambda _, handle: handle.sleep.remote()) for actor in self._alive()]
        )

    async def wake_up(self) -> None:
        """Let every engine take its memory again; one that was restarted while it slept is repaired like any other.

        Raises:
            ActorLost: no rollout actor is left.
        """
        await asyncio.gather(*[self._wake_up(actor) for actor in self._alive()])

    async def next_group(self, sampling: Sampling) -> ScoredGroup | None:
        """Let the actor with the most room answer its next lease, and have the group scored; None without a lease.

        A group that missed its deadline or came back faulty has been requeued; the call goes on with the next lease.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: the group disappeared before it was scored.
            TaskFailed: engines or judges failed at the task again and again.
        """
        async with self._turn():
            return await self._next_group(sampling)

    async def _next_group(self, sampling: Sampling) -> ScoredGroup | None:
        while True:
            if self._condemned:
                raise self._quarantined(self._condemned.popleft())
            actor = self._least_busy()
            if actor.is_repairing:
                await actor.repaired()
                continue
            incarnation = actor.incarnation
            self._in_flight[actor.name] += 1
            try:
                meta, num_slots, group = actor.handle.next_group.options(num_returns=3).remote(sampling)
                meta, self._slots[actor.name] = await meta, await num_slots
            except RayActorError as error:
                if isinstance(error, RayTaskError):  # the actor lives; the only one that it calls is gone
                    raise CoordinatorLost from error
                await self._repair(actor, incarnation, error)
                continue
            except (FaultyGroup, DeadlineMissed) as error:
                self._note(error)
                continue
            finally:
                self._in_flight[actor.name] -= 1
            if meta is None:
                return None
            return await self._score(meta, group)

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[ScoredGroup]:
        """Answer given tasks outside the curriculum, in their order; each engine starts them as it has room.

        A task at which engines or judges fail again and again is left out.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: a group was aborted, or disappeared before it was scored.
        """
        actors = itertools.cycle(self._alive())
        async with self._turn():
            with self._waits.on(f"answers to {len(tasks)} questions"):
                return await self._answer_all(tasks, sampling, actors)

    async def _answer_all(
        self, tasks: Sequence[Task], sampling: Sampling, actors: Iterator[SupervisedActor]
    ) -> list[ScoredGroup]:
        leases = [
            TaskLease(lease_id=index, task_id=task.task_id, attempt=0, replayed=False, phase=task.phase)
            for index, task in enumerate(tasks)
        ]
        groups = await asyncio.gather(
            *[
                self._answer_unless_it_fails(task, lease, sampling, actor)
                for task, lease, actor in zip(tasks, leases, actors, strict=False)
            ]
        )
        return [group for group in groups if group is not None]

    async def on_every_engine(self, call: Callable[[str, Any], Awaitable[Any]]) -> dict[str, Any]:
        """Run `call(name, handle)` on all live engines at once, again on those that restart meanwhile.

        Raises:
            ActorLost: no rollout actor is left.
        """
        async with self._turn():
            results = await asyncio.gather(*[self._on_engine(actor, call) for actor in self._alive()])
        self._alive()
        return {name: result for name, result in results if name is not None}

    async def judge_events(self) -> list[JudgeEvent]:
        """Return the changes of the judges' circuit breakers since the last call, oldest first.

        Those of a judge that died are lost.
        """
        drained = await asyncio.gather(
            *[judge.call(lambda handle: handle.drain_events.remote()) for judge in self._judges]
        )
        return sorted((event for events in drained for event in events), key=lambda event: event.unix_s)

    def fetch(self, groups: Sequence[Any]) -> Sequence[Group]:
        """Fetch the groups behind references; block until they are here."""
        return ray.get(list(groups))

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._turns is None else self._turns.of(Side.ENGINES)

    async def _wake_up(self, actor: SupervisedActor) -> None:
        await actor.repaired()
        incarnation = actor.incarnation
        _, is_awake = await self._on_engine(actor, lambda _, handle: handle.wake_up.remote())
        if is_awake is False:
            await self._repair(actor, incarnation, RayActorError())

    async def _on_engine(
        self, actor: SupervisedActor, call: Callable[[str, Any], Awaitable[Any]]
    ) -> tuple[str | None, Any]:
        """Return (name, result), or (None, None) for an actor that is gone for good."""
        await actor.repaired()
        try:
            return actor.name, await actor.call(lambda handle: call(actor.name, handle))
        except ActorLost:
            return None, None

    def _alive(self) -> list[SupervisedActor]:
        alive = [actor for actor in self._rollouts if not actor.lost]
        if not alive:
            raise ActorLost(
                "no rollout actor is left; read their logs in logs/, remove the cause, then go on with --resume"
            )
        return alive

    def _least_busy(self) -> SupervisedActor:
        """Return the actor whose engine is least full.

        An actor under repair comes last: until it is up to date, it would answer with old weights.
        """

        def fullness(actor: SupervisedActor) -> tuple[bool, float]:
            return actor.is_repairing, self._in_flight[actor.name] / self._slots.get(actor.name, 1)

        return min(self._alive(), key=fullness)

    async def _answer_unless_it_fails(
        self, task: Task, lease: TaskLease, sampling: Sampling, actor: SupervisedActor
    ) -> ScoredGroup | None:
        try:
            return await self._answer(task, lease, sampling, actor)
        except TaskFailed:
            return None

    async def _answer(self, task: Task, lease: TaskLease, sampling: Sampling, actor: SupervisedActor) -> ScoredGroup:
        while True:
            try:
                meta, group = await self._answering[actor.name](
                    partial(_answer, task=task, lease=lease, sampling=sampling)
                )
            except FaultyGroup as fault:
                self._note(fault)
                lease = replace(lease, num_requeues=lease.num_requeues + 1)
                continue
            except CallFailed as failed:
                raise self._quarantined(TaskFailed(lease.lease_id, lease.task_id, str(failed), actor.name)) from failed
            if meta is None:
                raise GroupLost(lease.lease_id, lease.task_id, "it was aborted")
            return await self._score(meta, group)

    def _note(self, error: FaultyGroup | DeadlineMissed) -> None:
        """Count and report a group that is sampled again.

        Raises:
            TaskFailed: it has been sampled again too often.
        """
        if isinstance(error, FaultyGroup):
            self.num_faulty += 1
        else:
            self.num_late += 1
        self._on_fault(
            engine=error.engine,
            kind=str(error.kind),
            lease_id=error.lease_id,
            task_id=error.task_id,
            action="quarantined" if error.is_final else "requeued",
        )
        if error.is_final:
            reason = f"{error.engine} {error.detail}, as engines did every time before"
            raise TaskFailed(error.lease_id, error.task_id, reason, error.engine) from error

    def _quarantined(self, failed: TaskFailed) -> TaskFailed:
        """Report a task that goes to quarantine; return the error to raise."""
        self._on_fault(actor=failed.actor, task_id=failed.task_id, error=failed.reason, action="quarantined")
        return failed

    async def _repair(self, actor: SupervisedActor, incarnation: int, error: RayActorError) -> None:
        """Repair an actor; if it is lost, go on as long as another one is left."""
        try:
            await actor.repair(incarnation, error)
        except ActorLost:
            self._alive()

    async def _score(self, meta: GroupMeta, group: Any) -> ScoredGroup:
        judge, lease = next(self._next_judge), meta.lease
        try:
            scores = await judge(lambda handle: handle.score_group.remote(group))
        except ObjectLostError as error:
            raise GroupLost(lease.lease_id, lease.task_id, type(error).__name__) from error
        except CallFailed as failed:
            raise self._quarantined(
                TaskFailed(lease.lease_id, lease.task_id, str(failed), judge.actor.name)
            ) from failed
        self._waits.progress()
        return ScoredGroup(meta=meta, scores=scores, group=group)


async def _answer(handle: Any, *, task: Task, lease: TaskLease, sampling: Sampling) -> tuple[GroupMeta | None, Any]:
    """Ask one actor; the metadata comes here, the group stays in the object store."""
    meta, group = handle.answer.options(num_returns=2).remote(task, lease, sampling)
    return await meta, group
