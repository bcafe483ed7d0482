"""Where batches come from: what the loop asks for and what it gets; see `on_policy.py` and `bounded_lag.py`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Protocol, Self

from actors.rollout import Sampling
from cluster.batches.ledger import GroupOutcome, OutcomeCounts
from cluster.group import ScoredGroup
from cluster.roles import GroupLost, TaskFailed
from curriculum.metric import Metric
from curriculum.task import TaskOutcome
from curriculum.transition import CurriculumReport


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What the next batch is for."""

    sampling: Sampling
    version: int
    """Weight updates sent so far: the policy that trains on the batch."""
    remaining_steps: int | None
    """Steps of the phase that are left, this one included; None where the phase ends by itself."""

    def after_step(self) -> Self:
        """Return the order of the next step of the phase, as far as it is known."""
        left = self.remaining_steps
        return replace(self, remaining_steps=None if left is None else max(0, left - 1))


@dataclass(slots=True, kw_only=True)
class Collected:
    """The groups of one step."""

    sampled: list[ScoredGroup] = field(default_factory=list[ScoredGroup])
    """Every group whose lease ends with the step, whether it is trained on or not."""
    batch: list[ScoredGroup] = field(default_factory=list[ScoredGroup])
    """Those to train on."""
    skipped: list[ScoredGroup] = field(default_factory=list[ScoredGroup])
    """Those that would have been trained on, had a guard not left the update out."""
    outcome_counts: OutcomeCounts = field(default_factory=OutcomeCounts)
    """How the leases end."""
    outcomes: list[TaskOutcome] = field(default_factory=list[TaskOutcome])
    """What is reported to the curriculum."""
    quarantined: list[TaskFailed] = field(default_factory=list[TaskFailed])
    """Tasks that are not handed out any more."""

    def add(self, group: ScoredGroup, outcome: GroupOutcome) -> None:
        """Add a scored group."""
        self.sampled.append(group)
        if outcome is GroupOutcome.TRAINED:
            self.batch.append(group)
        self.outcome_counts[outcome] += 1
        self.outcomes.append(group.outcome)

    def lose(self, lost: GroupLost, *, at_most: int) -> None:
        """Count a group that was lost before it was scored.

        Raises:
            GroupLost: more than `at_most` were.
        """
        is_task_at_fault = isinstance(lost, TaskFailed)
        self.outcome_counts[GroupOutcome.QUARANTINED if is_task_at_fault else GroupOutcome.FAILED] += 1
        if self.outcome_counts[GroupOutcome.FAILED] + self.outcome_counts[GroupOutcome.QUARANTINED] > at_most:
            raise lost
        if is_task_at_fault:
            self.quarantined.append(lost)
        self.outcomes.append(
            TaskOutcome(
                lease_id=lost.lease_id,
                task_id=lost.task_id,
                accuracies=(),
                num_samples=0,
                quarantined=is_task_at_fault,
            )
        )

    def skip_batch(self) -> None:
        """Note that the batch is not trained on after all."""
        for group in self.batch:
            group.advantages = None
        self.outcome_counts[GroupOutcome.TRAINED] -= len(self.batch)
        self.outcome_counts[GroupOutcome.SKIPPED] += len(self.batch)
        self.skipped, self.batch = self.batch, []

    @property
    def num_with_signal(self) -> int:
        """Groups that were trained on, or would have been."""
        return len(self.batch) + len(self.skipped)

    def extend(self, other: Collected) -> None:
        """Take over the groups of `other`."""
        self.sampled += other.sampled
        self.batch += other.batch
        self.skipped += other.skipped
        self.outcome_counts += other.outcome_counts
        self.outcomes += other.outcomes
        self.quarantined += other.quarantined


class BatchSource(Protocol):
    """Fills batches slice by slice and reports every group to the curriculum.

    One step is `next_slice` until it returns nothing, `close_batch`, `finish_step`.
    """

    @property
    def acceptance_rate(self) -> Annotated[float, Metric("rollout/acceptance_rate", "share")]:
        """Share of the scored groups that had a signal, one group with a signal added.

        Of the groups scored for the batch with lag 0, of the latest `4 × groups_per_batch` with a lag. Low: the tasks
        are too easy or too hard for the policy. Sampling ahead grows with its inverse, as far as the bound allows.
        """
        ...

    @property
    def num_waiting(self) -> Annotated[int, Metric("rollout/buffer_groups", "count")]:
        """Scored groups that wait for a later batch when the step ends.

        0: the learner waits for the engines. About `groups_per_batch`: the engines wait for the learner.
        """
        ...

    @property
    def waiting_bytes(self) -> Annotated[int, Metric("rollout/buffer_bytes", "bytes")]:
        """What the groups that wait take in the object store.

        Bounded by `(rollout.max_policy_lag + 1) × groups_per_batch` groups; a group of 8 takes 4 bytes per prompt token
        and 8 per response token.
        """
        ...

    async def next_slice(self, order: BatchOrder) -> list[ScoredGroup]:
        """Return the next groups of the running batch; none if it is whole, or too many groups had no signal."""
        ...

    def close_batch(self) -> Collected:
        """Close the batch; return its groups and those that were sampled for it and not used."""
        ...

    async def finish_step(self, step: int, *, num_trained_groups: int, version: int) -> CurriculumReport:
        """Close the step; `version` is what the learner has now."""
        ...

    async def weights_delivered(self, version: int) -> None:
        """Note that every engine samples under `version` from now on."""
        ...

    async def end_phase(self) -> Collected:
        """Give back what the phase has not used; return how those leases end, without their groups."""
        ...

    async def restart(self, version: int) -> Collected:
        """Give back what is in flight or waits: the learner goes on from other weights, which will be `version`."""
        ...

    async def close(self) -> None:
        """End what runs in the background."""
        ...
