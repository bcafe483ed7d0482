"""The roles of the loop, fulfilled by Ray actors: references travel, tokens stay in the object store."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from actors.rollout import Sampling
from actors.trajectory import Group, GroupMeta
from cluster.batch import BatchGroup
from cluster.joined_calls import JoinedKeep
from cluster.roles import GroupLost, SyncReport
from cluster.supervision import ActorLost, SupervisedActor
from cluster.weight_sync import check_receipt
from curriculum.leases import LeaseCounts
from curriculum.task import Demonstration, Task, TaskLease, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary
from learner.learner_actor import TrainingItem
from learner.microbatch import SftReport, StepReport
from reward.circuit import JudgeEvent


class RayCurriculum:
    """The coordinator actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._keep = JoinedKeep(lambda answered: handle.keep.remote(answered))

    async def open_batch(self, num_tasks: int) -> None:
        """Opens leases for the current step."""
        await self._handle.open_batch.remote(num_tasks)

    async def open_stream(self, num_tasks: int) -> tuple[int, ...]:
        """Opens leases at any time; returns their ids."""
        return await self._handle.open_stream.remote(num_tasks)

    async def open_leases(self) -> tuple[int, ...]:
        """Ids of the leases that are not closed."""
        return await self._handle.open_leases.remote()

    async def keep(self, answered: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """Keeps answered leases open; returns those that are no duplicates."""
        return await self._keep(answered)

    async def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Closes leases without an outcome."""
        return await self._handle.withdraw.remote(lease_ids)

    async def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]:
        """Reports outcomes; returns the leases they closed."""
        return await self._handle.report.remote(outcomes)

    async def finish_step(self, summary: StepSummary) -> CurriculumReport:
        """Closes the step."""
        return await self._handle.finish_step.remote(summary)

    async def phase_state(self) -> PhaseState:
        """Where the curriculum stands."""
        return await self._handle.phase_state.remote()

    async def lease_counts(self) -> LeaseCounts:
        """Totals of the lease book."""
        return await self._handle.lease_counts.remote()

    async def release(self, holder: str) -> None:
        """Gives back the leases of a dead actor."""
        await self._handle.release.remote(holder)

    async def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return await self._handle.state_dict.remote()

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a checkpoint."""
        await self._handle.load_state_dict.remote(state)


class RayRollouts:
    """Rollout actors that sample and judge actors that score; a group is scored as soon as it is there.

    Consumes: leases, through the rollout actors.  Waits for: the slowest answer.  Unblocked by: every finished group.
    """

    def __init__(
        self, rollouts: Sequence[SupervisedActor], judges: Sequence[SupervisedActor], *, max_groups_in_flight: int
    ) -> None:
        self._rollouts = rollouts
        self._judges = judges
        self._next_judge = itertools.cycle(judges)
        self._max_groups_in_flight = max_groups_in_flight
        self._in_flight: Counter[str] = Counter()
        """Calls of `next_group` that each actor works on."""

    @property
    def num_slots(self) -> int:
        """Groups that the living engines work on at a time."""
        return self._max_groups_in_flight * len(self._alive())

    @property
    def object_store_bytes(self) -> int:
        """What the object stores of all nodes hold, as Ray knew it about a second ago."""
        key = "object_store_memory"
        return int(ray.cluster_resources().get(key, 0) - ray.available_resources().get(key, 0))

    async def next_group(self, sampling: Sampling) -> BatchGroup | None:
        """Lets the least busy actor answer its next lease, and has the group scored; None without a lease.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: the group disappeared before it was scored.
        """
        while True:
            actor = self._least_busy()
            if actor.is_repairing:
                await actor.repaired()
                continue
            incarnation = actor.incarnation
            self._in_flight[actor.name] += 1
            try:
                meta, group = await _sampled(actor.handle.next_group, sampling)
            except RayActorError as error:
                await self._repair(actor, incarnation, error)
                continue
            finally:
                self._in_flight[actor.name] -= 1
            return None if meta is None else await self._score(meta, group)

    async def collect(self, num_groups: int, sampling: Sampling) -> list[BatchGroup]:
        """Answers leased tasks until `num_groups` groups are scored; in the order of their leases.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
        """
        groups: list[BatchGroup] = []
        while len(groups) < num_groups:
            found = await self._drain(num_groups - len(groups), sampling)
            groups += found
            if not found:
                await asyncio.sleep(0.2)
        return sorted(groups, key=lambda group: group.meta.lease_id)

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[BatchGroup]:
        """Answers given tasks outside the curriculum, in their order."""
        slots = asyncio.Semaphore(self._max_groups_in_flight * len(self._alive()))
        actors = itertools.cycle(self._alive())

        async def one(index: int, task: Task, actor: SupervisedActor) -> BatchGroup:
            lease = TaskLease(lease_id=index, task_id=task.task_id, attempt=0, replayed=False, phase=task.phase)
            async with slots:
                meta, group = await actor.call(lambda handle: _sampled(handle.answer, task, lease, sampling))
                return await self._score(meta, group)

        return await asyncio.gather(
            *[one(index, task, actor) for (index, task), actor in zip(enumerate(tasks), actors, strict=False)]
        )

    async def load_weights(self, payload: Any, version: int) -> list[tuple[str, Any]]:
        """Sends a payload to every engine; returns (actor name, receipt) pairs."""
        alive = self._alive()
        receipts = await asyncio.gather(
            *[actor.call(lambda handle: handle.load_weights.remote(payload, version)) for actor in alive]
        )
        return [(actor.name, receipt) for actor, receipt in zip(alive, receipts, strict=True)]

    async def judge_events(self) -> list[JudgeEvent]:
        """What the circuit breakers of the judges did since the last call, oldest first; a dead judge takes its own
        along."""
        drained = await asyncio.gather(
            *[judge.call(lambda handle: handle.drain_events.remote()) for judge in self._judges]
        )
        return sorted((event for events in drained for event in events), key=lambda event: event.unix_s)

    def fetch(self, groups: Sequence[Any]) -> Sequence[Group]:
        """The groups behind references; blocks."""
        return ray.get(list(groups))

    def _alive(self) -> list[SupervisedActor]:
        alive = [actor for actor in self._rollouts if not actor.lost]
        if not alive:
            raise ActorLost("no rollout actor is left; resume the run with --resume when the cause is mended")
        return alive

    def _least_busy(self) -> SupervisedActor:
        """An actor under repair is asked last: until it is up to date its answers would be of old weights."""
        return min(self._alive(), key=lambda actor: (actor.is_repairing, self._in_flight[actor.name]))

    async def _drain(self, num_groups: int, sampling: Sampling) -> list[BatchGroup]:
        """Lets every actor pull until the coordinator has nothing more to give."""
        alive = self._alive()
        pulls = min(self._max_groups_in_flight, -(-num_groups // len(alive)))
        found = await asyncio.gather(*[self._pull(actor, sampling) for actor in alive for _ in range(pulls)])
        return [group for groups in found for group in groups]

    async def _pull(self, actor: SupervisedActor, sampling: Sampling) -> list[BatchGroup]:
        groups: list[BatchGroup] = []
        while not actor.lost:
            incarnation = actor.incarnation
            try:
                meta, group = await _sampled(actor.handle.next_group, sampling)
            except RayActorError as error:
                await self._repair(actor, incarnation, error)
                continue
            if meta is None:
                break
            groups.append(await self._score(meta, group))
        return groups

    async def _repair(self, actor: SupervisedActor, incarnation: int, error: RayActorError) -> None:
        """A lost actor is tolerated as long as another one is left to take its work."""
        try:
            await actor.repair(incarnation, error)
        except ActorLost:
            self._alive()

    async def _score(self, meta: GroupMeta, group: Any) -> BatchGroup:
        judge = next(self._next_judge)
        try:
            scores = await judge.call(lambda handle: handle.score_group.remote(group))
        except ObjectLostError as error:
            raise GroupLost(meta.lease_id, meta.task_id, type(error).__name__) from error
        return BatchGroup(meta=meta, scores=scores, group=group)


class RayLearner:
    """All ranks of the learner, called together; sends its weights to the rollout actors."""

    def __init__(self, ranks: Sequence[Any], rollouts: RayRollouts, *, reference: Path | None) -> None:
        """Takes the rank actors in order; `reference` is where the frozen reference policy is kept, if there is one."""
        self._ranks = ranks
        self._rollouts = rollouts
        self._reference = reference
        self._sent: tuple[Any, int] | None = None

    async def start_stage(self, stage: str) -> None:
        """A fresh optimizer; the reinforcement learning freezes its starting point when a KL penalty asks for it."""
        reference = self._reference if stage == "rl" else None
        if reference is not None and not reference.exists():
            await self.export(reference)
        await self._all("start_stage", stage, None if reference is None else str(reference))

    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport:
        """One update of the warm-up."""
        return (await self._all("sft_step", ray.put(list(demonstrations)), learning_rate))[0]

    async def train_step(self, batch: Sequence[BatchGroup], learning_rate: float) -> StepReport:
        """One training step on a batch of scored groups."""
        items = [
            TrainingItem(
                group=group.group,
                rewards=group.rewards,
                response_tokens=group.meta.response_tokens,
                prompt_tokens=group.meta.prompt_tokens,
                data_source=group.meta.data_source,
            )
            for group in batch
        ]
        return (await self._all("train_step", items, learning_rate))[0]

    async def sync_weights(self, version: int) -> SyncReport:
        """Gathers the weights, sends them to every engine, and compares the receipts.

        Raises:
            WeightSyncError: an engine reports something else than was sent.
        """
        start = time.monotonic()
        refs = [rank.pack_weights.options(num_returns=2).remote(version) for rank in self._ranks]
        announcement, *_ = await asyncio.gather(*[announced for announced, _ in refs])
        payload = refs[0][1]
        self._sent = (payload, version)
        receipts = await self._rollouts.load_weights(payload, version)
        for engine, receipt in receipts:
            check_receipt(announcement, receipt, engine)
        return SyncReport(
            version=version,
            num_tensors=len(announcement.checksums),
            num_bytes=announcement.num_bytes,
            num_engines=len(receipts),
            seconds=time.monotonic() - start,
        )

    async def bring_up_to_date(self, handle: Any) -> None:
        """Sends the current weights to an engine that restarted with those of the base model."""
        if self._sent is not None:
            await handle.load_weights.remote(*self._sent)

    async def save(self, directory: Path) -> None:
        """Writes a checkpoint."""
        await self._all("save", directory)

    async def load(self, directory: Path) -> None:
        """Restores a checkpoint."""
        await self._all("load", directory)

    async def export(self, directory: Path) -> None:
        """Writes a Hugging Face folder."""
        await self._all("export", directory)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Calls every rank; a rank that dies ends the run, since the others wait for it in a collective."""
        calls = [getattr(rank, method).remote(*arguments) for rank in self._ranks]
        try:
            return await asyncio.gather(*calls)
        except RayActorError as error:
            raise ActorLost(
                f"a learner rank died in {method}; continue from the last checkpoint with --resume"
            ) from error


async def _sampled(method: Any, *arguments: Any) -> tuple[GroupMeta | None, Any]:
    """Calls an actor method that returns (meta, group): the meta comes here, the group stays in the object store."""
    meta, group = method.options(num_returns=2).remote(*arguments)
    return await meta, group
