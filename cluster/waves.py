"""Strictly on-policy batches: sampling and training take turns, and groups are sampled in waves.

Which task a lease carries depends on what was reported before its wave, never on the order of the answers, so that a
run is deterministic, resumes included.
"""

from __future__ import annotations

from cluster.batch import BatchGroup
from cluster.batch_source import BatchOrder, Collected
from cluster.buffer import AcceptanceRate, LagBoundError, policy_lag, without_signal
from cluster.ledger import Fate, Fates
from cluster.roles import Curriculum, Rollouts
from curriculum.transition import CurriculumReport, StepSummary


class Waves:
    """Fulfils `BatchSource` with `max_policy_lag = 0`.

    Consumes: leases, through the rollouts.  Waits for: the slowest answer of each wave.  Unblocked by: every group.
    """

    def __init__(
        self, curriculum: Curriculum, rollouts: Rollouts, *, batch_size: int, max_rounds: int, dynamic_sampling: bool
    ) -> None:
        """Takes B, the number of waves for one batch, and whether groups without variance are replaced."""
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._batch_size = batch_size
        self._max_rounds = max_rounds
        self._dynamic_sampling = dynamic_sampling
        self._acceptance = self._fresh_acceptance()

    @property
    def acceptance_rate(self) -> float:
        """Share of the groups of the latest batch that had a signal."""
        return self._acceptance.value

    @property
    def num_waiting(self) -> int:
        """Nothing is kept between batches."""
        return 0

    @property
    def waiting_bytes(self) -> int:
        """Likewise."""
        return 0

    async def next_batch(self, order: BatchOrder) -> Collected:
        """Wave after wave until the batch is full or the waves are used up."""
        self._acceptance = self._fresh_acceptance()
        collected = Collected()
        for _ in range(self._max_rounds):
            await self._collect_wave(self._batch_size - len(collected.batch), order, collected)
            if len(collected.batch) == self._batch_size:
                break
        return collected

    async def finish_step(self, summary: StepSummary, *, version: int) -> CurriculumReport:
        """Closes the step; every lease has been reported by its wave."""
        return await self._curriculum.finish_step(summary)

    async def end_phase(self) -> Fates:
        """Nothing is left over."""
        return Fates()

    async def close(self) -> None:
        """Nothing runs between batches."""

    def _fresh_acceptance(self) -> AcceptanceRate:
        return AcceptanceRate(self._max_rounds * self._batch_size)

    async def _collect_wave(self, num_groups: int, order: BatchOrder, collected: Collected) -> None:
        await self._curriculum.open_batch(num_groups)
        groups = await self._rollouts.collect(num_groups, order.sampling)
        fates = {group.meta.lease_id: self._fate(group, order.version) for group in groups}
        accepted = await self._curriculum.report(
            [group.outcome(trained=fates[group.meta.lease_id] is Fate.TRAINED) for group in groups]
        )
        for group in groups:
            if group.meta.lease_id in accepted:
                collected.add(group, fates[group.meta.lease_id])

    def _fate(self, group: BatchGroup, version: int) -> Fate:
        trainable = group.trainable(dynamic_sampling=self._dynamic_sampling)
        self._acceptance.observe(trainable)
        if not trainable:
            return without_signal(group)
        lag = policy_lag(group, version)
        if lag < 0:
            raise LagBoundError(
                f"group of task {group.meta.task_id}: policy_version={group.meta.policy_version}, but the learner is "
                f"at {version}; resume from the last checkpoint"
            )
        return Fate.TRAINED if lag == 0 else Fate.TOO_OLD
