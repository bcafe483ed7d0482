"""Batches with a bounded policy lag: groups are sampled without a break while the learner trains."""

from __future__ import annotations

import asyncio

from cluster.batch import BatchGroup
from cluster.batch_source import BatchOrder, Collected
from cluster.buffer import LagBuffer
from cluster.ledger import Fate, Fates
from cluster.roles import Curriculum, GroupLost, Rollouts
from curriculum.task import TaskOutcome
from curriculum.transition import CurriculumReport, StepSummary

IDLE_S = 5.0
"""After so long without an arrival one more pull goes out: it takes over a lease whose holder lost it."""


class Stream:
    """Fulfils `BatchSource` with `max_policy_lag` > 0.

    Consumes: leases, through the rollouts; one pull per group under way, which has it scored, keeps its lease, and lets
    the next ones in.  Waits for: a batch that may leave (`LagBuffer`).  Unblocked by: every group.

    A lease is closed by `finish_step` and nowhere else, whether its group was trained on or dropped since the step
    before. Whatever is under way or waits is therefore open in a checkpoint, and sampled again after a resume: nothing
    is trained on twice and nothing disappears.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        rollouts: Rollouts,
        *,
        batch_size: int,
        max_policy_lag: int,
        max_rounds: int,
        dynamic_sampling: bool,
    ) -> None:
        """Takes B, k, how many batches' worth of groups may be dropped for one batch, and whether groups without
        variance are replaced."""
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._batch_size = batch_size
        self._max_dropped = max_rounds * batch_size
        self._dynamic_sampling = dynamic_sampling
        self._buffer = LagBuffer(batch_size=batch_size, max_policy_lag=max_policy_lag)
        self._order: BatchOrder | None = None
        self._is_admitting = False
        self._opening = asyncio.Lock()
        self._dropped = Collected()
        """Groups of no use that arrived since the last batch left."""
        self._outcomes: list[TaskOutcome] = []
        """Of the leases that the running step closes."""
        self._pulls: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def acceptance_rate(self) -> float:
        """Share of the latest groups that had a signal."""
        return self._buffer.acceptance.value

    @property
    def num_waiting(self) -> int:
        """Scored groups that wait for a batch."""
        return self._buffer.num_waiting

    @property
    def waiting_bytes(self) -> int:
        """What they take in the object store."""
        return self._buffer.waiting_bytes

    async def next_batch(self, order: BatchOrder) -> Collected:
        """The oldest groups, once they may leave; if too many were dropped for them, what there is.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: more groups were lost than a batch has.
        """
        await self._begin(order)
        while not self._buffer.is_ready():
            if self._is_exhausted and self._buffer.num_under_way == 0:
                break
            await self._admit()
            await self._next_change()
        return self._leave()

    async def finish_step(self, summary: StepSummary, *, version: int) -> CurriculumReport:
        """Closes the leases of the step, then the step; admission rests meanwhile, for good if the phase is over."""
        async with self._opening:
            await self._curriculum.report(self._outcomes)
            report = await self._curriculum.finish_step(summary)
            self._outcomes = []
            self._buffer.advance(version)
            self._order = self._current_order.after_step()
            self._is_admitting = self._is_admitting and report.transition is None
        await self._admit()
        return report

    async def end_phase(self) -> Fates:
        """Waits for what is under way and gives back every lease that is still open: no group of this phase is trained
        on after it, and no request outlives it."""
        self._is_admitting = False
        while self._buffer.num_under_way:
            await self._next_change()
        await self.close()
        left = self._buffer.clear() + [outcome.lease_id for outcome in self._dropped.outcomes]
        self._dropped = Collected()
        return Fates({Fate.RETURNED: await self._curriculum.withdraw(left)})

    async def close(self) -> None:
        """Cancels the pulls; their leases stay open."""
        self._is_admitting = False
        for pull in self._pulls:
            pull.cancel()
        await asyncio.gather(*self._pulls, return_exceptions=True)

    # ---- the batch

    async def _begin(self, order: BatchOrder) -> None:
        """Admission goes on; the first time it begins with the leases that a resumed run left open."""
        is_first = self._order is None
        self._order, self._is_admitting = order, True
        if is_first:
            self._buffer.advance(order.version)
            self._sample(await self._curriculum.open_leases())

    def _leave(self) -> Collected:
        collected, self._dropped = self._dropped, Collected()
        for group in self._buffer.take_batch():
            collected.add(group, Fate.TRAINED)
        self._outcomes += collected.outcomes
        return collected

    async def _next_change(self) -> None:
        """Waits for a group to arrive, or for a pull to fail."""
        self._check()
        try:
            async with asyncio.timeout(IDLE_S):
                await self._changed.wait()
                self._changed.clear()
        except TimeoutError:
            if self._spare is None or self._spare.done():
                self._spare = self._start_pull()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ---- groups under way

    async def _admit(self) -> None:
        """Opens as many leases as there is room for; one admission at a time."""
        async with self._opening:
            num_tasks = self._room() if self._is_admitting and not self._is_exhausted else 0
            if num_tasks:
                self._sample(await self._curriculum.open_stream(num_tasks))

    @property
    def _is_exhausted(self) -> bool:
        """Whether too many groups were dropped for the next batch to go on trying."""
        return sum(self._dropped.fates.values()) >= self._max_dropped

    def _room(self) -> int:
        return self._buffer.room(
            num_slots=self._rollouts.num_slots, remaining_steps=self._current_order.remaining_steps
        )

    def _sample(self, lease_ids: tuple[int, ...]) -> None:
        self._buffer.admit(lease_ids)
        for _ in lease_ids:
            self._start_pull()

    def _start_pull(self) -> asyncio.Task[None]:
        pull = asyncio.create_task(self._pull())
        self._pulls.add(pull)
        pull.add_done_callback(self._landed)
        return pull

    async def _pull(self) -> None:
        """Brings in the group of one lease, whichever the coordinator hands out next."""
        try:
            group = await self._rollouts.next_group(self._current_order.sampling)
        except GroupLost as lost:
            await self._lose(lost)
        else:
            if group is not None:
                await self._arrive(group)
        self._changed.set()
        await self._admit()

    async def _arrive(self, group: BatchGroup) -> None:
        if not await self._curriculum.keep([(group.meta.lease_id, group.meta.task_id)]):
            return  # a second answer to the same lease
        async with self._opening:  # its own admission may not be booked yet
            fate = self._buffer.arrive(group, trainable=group.trainable(dynamic_sampling=self._dynamic_sampling))
        if fate is not None:
            self._dropped.add(group, fate)

    async def _lose(self, lost: GroupLost) -> None:
        if not await self._curriculum.keep([(lost.lease_id, lost.task_id)]):
            return
        async with self._opening:
            self._buffer.lose(lost.lease_id)
        self._dropped.lose(lost)
        if self._dropped.fates[Fate.FAILED] > self._batch_size:
            raise lost

    def _landed(self, pull: asyncio.Task[None]) -> None:
        self._pulls.discard(pull)
        if not pull.cancelled() and pull.exception() is not None:
            self._failure = self._failure or pull.exception()
            self._changed.set()

    @property
    def _current_order(self) -> BatchOrder:
        assert self._order is not None, "no batch was ordered"
        return self._order
