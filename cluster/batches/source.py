"""Where batches come from: what the loop asks for and what it gets. `on_policy.py` and `bounded_lag.py` fulfil it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from actors.rollout import Sampling
from cluster.batches.ledger import GroupOutcome, OutcomeCounts
from cluster.group import ScoredGroup
from cluster.roles import GroupLost
from curriculum.task import TaskOutcome
from curriculum.transition import CurriculumReport, StepSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What the next batch is for."""

    sampling: Sampling
    version: int
    """Weight updates sent so far: the policy that trains on the batch."""
    remaining_steps: int | None
    """Steps of the phase that are left, this one included; None where the phase ends by itself."""

    def after_step(self) -> Self:
        """The order that the next step of the phase will give, as far as it is known."""
        left = self.remaining_steps
        return replace(self, remaining_steps=None if left is None else max(0, left - 1))


@dataclass(slots=True, kw_only=True)
class Collected:
    """The groups of one step."""

    sampled: list[ScoredGroup] = field(default_factory=list)
    """Every group whose lease ends with the step, whether it is trained on or not."""
    batch: list[ScoredGroup] = field(default_factory=list)
    """Those to train on."""
    outcome_counts: OutcomeCounts = field(default_factory=OutcomeCounts)
    """How the leases end."""
    outcomes: list[TaskOutcome] = field(default_factory=list)
    """What the curriculum hears."""

    def add(self, group: ScoredGroup, outcome: GroupOutcome) -> None:
        """Books a scored group."""
        self.sampled.append(group)
        if outcome is GroupOutcome.TRAINED:
            self.batch.append(group)
        self.outcome_counts[outcome] += 1
        self.outcomes.append(group.outcome)

    def lose(self, lost: GroupLost, *, at_most: int) -> None:
        """Books a group that was lost before it was scored.

        Raises:
            GroupLost: more than `at_most` were.
        """
        self.outcome_counts[GroupOutcome.FAILED] += 1
        if self.outcome_counts[GroupOutcome.FAILED] > at_most:
            raise lost
        self.outcomes.append(TaskOutcome(lease_id=lost.lease_id, task_id=lost.task_id, accuracies=()))

    def extend(self, other: Collected) -> None:
        """Takes over the groups of `other`."""
        self.sampled += other.sampled
        self.batch += other.batch
        self.outcome_counts += other.outcome_counts
        self.outcomes += other.outcomes


class BatchSource(Protocol):
    """Fills batches slice by slice; the curriculum hears of every group through it.

    One step is `next_slice` until it returns nothing, `close_batch`, `finish_step`.
    """

    @property
    def acceptance_rate(self) -> float:
        """Share of the latest scored groups that had a signal."""
        ...

    @property
    def num_waiting(self) -> int:
        """Scored groups that wait for a later batch."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """What they take in the object store."""
        ...

    async def next_slice(self, order: BatchOrder) -> list[ScoredGroup]:
        """The next groups of the running batch for the learner; none if the batch is whole, or given up because too
        many groups had no signal."""
        ...

    def close_batch(self) -> Collected:
        """What became of the groups of the batch, and of those that were sampled for it in vain."""
        ...

    async def finish_step(self, summary: StepSummary, *, version: int) -> CurriculumReport:
        """Closes the step; `version` is what the learner has now."""
        ...

    async def weights_delivered(self, version: int) -> None:
        """Every engine samples under `version` from now on."""
        ...

    async def end_phase(self) -> OutcomeCounts:
        """Gives back what the phase has not used; returns how those leases ended."""
        ...

    async def close(self) -> None:
        """Ends what runs in the background."""
        ...
