"""Batches with a bounded policy lag: groups are sampled without a break while the learner trains."""

from __future__ import annotations

import asyncio
from functools import partial

from cluster.batches.in_flight import Arrival, GroupsInFlight
from cluster.batches.lag_buffer import LagBuffer
from cluster.batches.ledger import GroupOutcome, OutcomeCounts
from cluster.batches.source import BatchOrder, Collected
from cluster.group import ScoredGroup
from cluster.roles import Curriculum, GroupLost, Rollouts
from curriculum.task import TaskOutcome
from curriculum.transition import CurriculumReport


class BoundedLagSource:
    """Fulfils `BatchSource` with `max_policy_lag` > 0.

    Consumes: leases, through calls in flight; one per group, which has it scored, keeps its lease, and lets the next
    ones in.  Waits for: a slice that may leave (`LagBuffer`).  Unblocked by: every group.

    A lease is closed by `finish_step` and nowhere else, whether its group was trained on or dropped since the step
    before. Whatever is in flight or waits is therefore open in a checkpoint, and sampled again after a resume: nothing
    is trained on twice and nothing disappears.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        rollouts: Rollouts,
        *,
        batch_size: int,
        slice_size: int,
        max_policy_lag: int,
        max_rounds: int,
        dynamic_sampling: bool,
        mask_truncated: bool = False,
    ) -> None:
        """Set the sizes.

        Args:
            curriculum: gives leases and takes outcomes.
            rollouts: samples and scores groups.
            batch_size: B, groups of a batch.
            slice_size: groups of a slice.
            max_policy_lag: k, at least 1.
            max_rounds: so many batches' worth of groups may be dropped for one batch.
            dynamic_sampling: whether groups without variance are replaced.
            mask_truncated: whether truncated answers are left out of the training.
        """
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._batch_size = batch_size
        self._slice_size = slice_size
        self._max_dropped = max_rounds * batch_size
        self._trainable = partial(
            ScoredGroup.trainable, dynamic_sampling=dynamic_sampling, mask_truncated=mask_truncated
        )
        self._buffer = LagBuffer(batch_size=batch_size, max_policy_lag=max_policy_lag)
        self._in_flight = GroupsInFlight(rollouts, self._arrive)
        self._order: BatchOrder | None = None
        self._is_admitting = False
        self._is_over = False
        """Whether the running batch is whole, or given up."""
        self._opening = asyncio.Lock()
        self._collected = Collected()
        """Groups of the running batch, and those of no use that arrived since the one before it."""
        self._outcomes: list[TaskOutcome] = []
        """Of the leases that the running step closes."""

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

    async def next_slice(self, order: BatchOrder) -> list[ScoredGroup]:
        """Return the oldest groups as soon as they may leave; if too many were dropped for the batch, those there are.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: more groups were lost than a batch has.
        """
        await self._begin(order)
        num_groups = min(self._slice_size, self._buffer.num_missing)
        while not self._is_over and not self._buffer.is_ready(num_groups):
            if self._is_exhausted and self._buffer.num_in_flight == 0:
                self._is_over = True
                break
            await self._admit()
            await self._in_flight.next_change()
        groups = self._buffer.take(num_groups)
        for group in groups:
            self._collected.add(group, GroupOutcome.TRAINED)
        self._is_over = self._is_over or self._buffer.num_missing == 0
        return groups

    def close_batch(self) -> Collected:
        """Close the batch; return its groups and those that were dropped since the batch before it."""
        self._buffer.close_batch()
        collected, self._collected = self._collected, Collected()
        self._outcomes += collected.outcomes
        self._is_over = False
        return collected

    async def finish_step(self, step: int, *, num_trained_groups: int, version: int) -> CurriculumReport:
        """Close the leases of the step, then the step. Admission pauses meanwhile, and stops if the phase is over."""
        async with self._opening:
            await self._curriculum.report(self._outcomes)
            report = await self._curriculum.finish_step(step, num_trained_groups=num_trained_groups)
            self._outcomes = []
            self._buffer.advance(version)
            self._order = self._current_order.after_step()
            self._is_admitting = self._is_admitting and report.transition is None
        await self._admit()
        return report

    async def weights_delivered(self, version: int) -> None:
        """Admit what had to wait until the engines hold the newest weights."""
        self._buffer.engines_at(version)
        await self._admit()

    async def end_phase(self) -> Collected:
        """Abort the groups in flight and give back every open lease: no group of this phase is trained on after it."""
        await self.close()
        collected, self._collected = self._collected, Collected()
        failed = [outcome for outcome in collected.outcomes if outcome.quarantined]
        left = [outcome.lease_id for outcome in collected.outcomes if not outcome.quarantined]
        num_returned = await self._curriculum.withdraw(self._buffer.clear() + left)
        await self._curriculum.report(failed)
        counts = OutcomeCounts({GroupOutcome.RETURNED: num_returned, GroupOutcome.QUARANTINED: len(failed)})
        return Collected(outcome_counts=counts, quarantined=collected.quarantined)

    async def restart(self, version: int) -> Collected:
        """Give back what was sampled by weights that the learner no longer has; the next batch begins at `version`."""
        returned = await self.end_phase()
        self._buffer.advance(version)
        return returned

    async def close(self) -> None:
        """Abort the requests in flight; their leases stay open."""
        self._is_admitting = False
        await self._in_flight.close()

    # ---- the batch

    async def _begin(self, order: BatchOrder) -> None:
        """Start admission; the first time, begin with the leases that a resumed run left open."""
        is_first = self._order is None
        self._order, self._is_admitting = order, True
        if is_first:
            self._buffer.advance(order.version)
            self._buffer.engines_at(order.version)
            self._sample(await self._curriculum.open_leases())

    @property
    def _is_exhausted(self) -> bool:
        """Whether too many groups were dropped for the running batch to go on trying."""
        counts = self._collected.outcome_counts
        return counts.total() - counts[GroupOutcome.TRAINED] >= self._max_dropped

    # ---- groups in flight

    async def _admit(self) -> None:
        """Open as many leases as there is room for; one admission at a time."""
        async with self._opening:
            num_tasks = self._room() if self._is_admitting and not self._is_exhausted else 0
            if num_tasks:
                self._sample(await self._curriculum.open_stream(num_tasks))

    def _room(self) -> int:
        return self._buffer.room(
            num_slots=self._rollouts.num_slots, remaining_steps=self._current_order.remaining_steps
        )

    def _sample(self, lease_ids: tuple[int, ...]) -> None:
        self._buffer.admit(lease_ids)
        self._in_flight.start(len(lease_ids), self._current_order.sampling)

    async def _arrive(self, arrival: Arrival) -> None:
        """Record one arrival and admit the next groups; a second answer to the same lease does not count."""
        if arrival is not None and await self._curriculum.keep((arrival.lease_id, arrival.task_id)):
            async with self._opening:  # its own admission may not be booked yet
                self._book(arrival)
        self._in_flight.wake()
        await self._admit()

    def _book(self, arrival: ScoredGroup | GroupLost) -> None:
        if isinstance(arrival, GroupLost):
            self._buffer.lose(arrival.lease_id)
            self._collected.lose(arrival, at_most=self._batch_size)
            return
        outcome = self._buffer.arrive(arrival, trainable=self._trainable(arrival))
        if outcome is not None:
            self._collected.add(arrival, outcome)

    @property
    def _current_order(self) -> BatchOrder:
        assert self._order is not None, "no batch was ordered"
        return self._order
