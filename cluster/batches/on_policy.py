"""Strictly on-policy batches: a batch is sampled, in waves, under the weights that train on it.

Which task a lease carries depends on what was reported before its wave, and groups join the batch in the order of their
leases: a group waits for those before it. So a run is deterministic, slices and resumes included, whatever the order of
the answers.
"""

from __future__ import annotations

import asyncio
from functools import partial

from cluster.batches.in_flight import Arrival, GroupsInFlight
from cluster.batches.lag_buffer import AcceptanceRate, LagBoundError, policy_lag, without_signal
from cluster.batches.ledger import GroupOutcome
from cluster.batches.source import BatchOrder, Collected
from cluster.group import ScoredGroup
from cluster.roles import Curriculum, GroupLost, Rollouts
from curriculum.transition import CurriculumReport


class OnPolicySource:
    """Fulfils `BatchSource` with `max_policy_lag = 0`.

    Consumes: leases, through calls in flight.  Waits for: the slowest answer of each wave.  Unblocked by: every group.
    A wave is the groups that are asked for together. Waves run in the background, so that a slice is sampled while the
    learner works on the one before it.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        rollouts: Rollouts,
        *,
        batch_size: int,
        slice_size: int,
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
            max_rounds: waves for one batch.
            dynamic_sampling: whether groups without variance are replaced.
            mask_truncated: whether truncated answers are left out of the training.
        """
        self._curriculum = curriculum
        self._batch_size = batch_size
        self._slice_size = slice_size
        self._max_rounds = max_rounds
        self._trainable = partial(
            ScoredGroup.trainable, dynamic_sampling=dynamic_sampling, mask_truncated=mask_truncated
        )
        self._acceptance = self._fresh_acceptance()
        self._in_flight = GroupsInFlight(rollouts, self._arrive)
        self._arrived: dict[int, ScoredGroup | GroupLost] = {}
        """Arrivals by lease, until it is their turn."""
        self._collected = Collected()
        self._accepted: asyncio.Queue[ScoredGroup | None] = asyncio.Queue()
        """Groups for the learner, in order; None behind the last one."""
        self._collecting: asyncio.Task[None] | None = None

    @property
    def acceptance_rate(self) -> float:
        """Share of the groups of the latest batch that had a signal."""
        return self._acceptance.value

    @property
    def num_waiting(self) -> int:
        """Groups kept between batches: none."""
        return 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the groups kept between batches: none."""
        return 0

    async def next_slice(self, order: BatchOrder) -> list[ScoredGroup]:
        """Return the next groups in the order of their leases, as soon as all before them are scored.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            GroupLost: more groups were lost than a batch has.
        """
        if self._collecting is None:
            self._collecting = asyncio.create_task(self._collect(order))
        groups: list[ScoredGroup] = []
        while len(groups) < self._slice_size and (group := await self._next_accepted()) is not None:
            groups.append(group)
        return groups

    def close_batch(self) -> Collected:
        """Close the batch; return its groups and those that were replaced."""
        collected, self._collected = self._collected, Collected()
        self._accepted = asyncio.Queue()
        self._collecting = None
        return collected

    async def finish_step(self, step: int, *, num_trained_groups: int, version: int) -> CurriculumReport:
        """Close the step; every lease was reported by its wave."""
        return await self._curriculum.finish_step(step, num_trained_groups=num_trained_groups)

    async def weights_delivered(self, version: int) -> None:
        """Do nothing: the next batch is ordered when the engines hold their weights."""

    async def end_phase(self) -> Collected:
        """Return nothing: nothing is left over."""
        return Collected()

    async def restart(self, version: int) -> Collected:
        """Return nothing: between two steps nothing is in flight."""
        return Collected()

    async def close(self) -> None:
        """End what runs in the background."""
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.gather(self._collecting, return_exceptions=True)
        await self._in_flight.close()

    # ---- in the background

    async def _collect(self, order: BatchOrder) -> None:
        """Sample wave after wave until the batch is whole or the waves are used up."""
        self._acceptance = self._fresh_acceptance()
        try:
            for _ in range(self._max_rounds):
                num_missing = self._batch_size - len(self._collected.batch)
                if num_missing:
                    await self._collect_wave(num_missing, order)
        finally:
            self._accepted.put_nowait(None)

    async def _collect_wave(self, num_groups: int, order: BatchOrder) -> None:
        lease_ids = await self._curriculum.open_batch(num_groups)
        self._in_flight.start(num_groups, order.sampling)
        first = len(self._collected.outcomes)
        for lease_id in lease_ids:
            while lease_id not in self._arrived:
                await self._in_flight.next_change()
            self._book(self._arrived.pop(lease_id), order.version)
        await self._curriculum.report(self._collected.outcomes[first:])

    async def _arrive(self, arrival: Arrival) -> None:
        """Keep the first result of every lease."""
        if arrival is not None and await self._curriculum.keep((arrival.lease_id, arrival.task_id)):
            self._arrived[arrival.lease_id] = arrival

    def _book(self, arrival: ScoredGroup | GroupLost, version: int) -> None:
        if isinstance(arrival, GroupLost):
            self._collected.lose(arrival, at_most=self._batch_size)
            return
        outcome = self._outcome_of(arrival, version)
        self._collected.add(arrival, outcome)
        if outcome is GroupOutcome.TRAINED:
            self._accepted.put_nowait(arrival)

    async def _next_accepted(self) -> ScoredGroup | None:
        """Return the next group, None behind the last one; raise what ended the collection."""
        assert self._collecting is not None, "no batch was ordered"
        group = await self._accepted.get()
        if group is None:
            self._accepted.put_nowait(None)
            await self._collecting
        return group

    def _fresh_acceptance(self) -> AcceptanceRate:
        return AcceptanceRate(self._max_rounds * self._batch_size)

    def _outcome_of(self, group: ScoredGroup, version: int) -> GroupOutcome:
        trainable = self._trainable(group)
        self._acceptance.observe(trainable)
        if not trainable:
            return without_signal(group)
        lag = policy_lag(group, version)
        if lag < 0:
            raise LagBoundError(
                f"group of task {group.task_id}: policy_version={group.meta.policy_version}, but the learner is "
                f"at {version}; resume from the last checkpoint"
            )
        return GroupOutcome.TRAINED if lag == 0 else GroupOutcome.TOO_OLD
