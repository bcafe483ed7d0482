"""The ledger of a run: the outcome of every lease. It balances, or something was lost or counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Annotated

from curriculum.leases import LeaseCounts
from curriculum.metric import Metric


class GroupOutcome(StrEnum):
    """How a lease ends; every lease ends in exactly one way. `Ledger` explains each."""

    TRAINED = "trained"
    NO_VARIANCE = "no_variance"
    UNKNOWN = "unknown"
    TOO_OLD = "too_old"
    FAILED = "failed"
    SKIPPED = "skipped"
    QUARANTINED = "quarantined"
    RETURNED = "returned"


OutcomeCounts = Counter[GroupOutcome]
"""Number of leases by how they ended."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Leases that ended, over the run and its resumes. It moves when a step ends, so it is part of every checkpoint."""

    trained: Annotated[int, Metric("ledger/trained", "count")] = 0
    """The group was in a batch that the learner took."""
    no_variance: Annotated[int, Metric("ledger/no_variance", "count")] = 0
    """All known answers of the group are worth the same; another group took its place.

    Grows fast at the end of a phase whose tasks are learned."""
    unknown: Annotated[int, Metric("ledger/unknown", "count")] = 0
    """Fewer than two answers of the group have a known reward.

    Look at the judge."""
    too_old: Annotated[int, Metric("ledger/too_old", "count")] = 0
    """The group was sampled by weights that are older than the bound allows.

    0. An engine missed an update: it restarted and answered before it was up to date."""
    failed: Annotated[int, Metric("ledger/failed", "count")] = 0
    """The group was lost before it was scored, through no fault of its task.

    0 unless a node died."""
    skipped: Annotated[int, Metric("ledger/skipped", "count")] = 0
    """The group was in a batch whose update a guard left out.

    0 without a guard of that action; the `guard` events say which and why."""
    quarantined: Annotated[int, Metric("ledger/quarantined", "count")] = 0
    """The task failed again and again, and is in quarantine.

    0; `quarantine.jsonl` names the tasks and their reasons."""
    returned: Annotated[int, Metric("ledger/returned", "count")] = 0
    """The phase ended, or the learner went back to an earlier checkpoint, before the group was used.

    Small: only phases that end unforeseen leave groups over."""

    def add(self, outcome_counts: Mapping[GroupOutcome, int]) -> None:
        """Count leases that ended."""
        for outcome, number in outcome_counts.items():
            setattr(self, outcome, getattr(self, outcome) + number)

    @property
    def ended(self) -> int:
        """Leases that ended, in whatever way."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def trained_share(self) -> Annotated[float | None, Metric("rollout/trained_share", "share")]:
        """Trained groups among all whose lease has ended, over the whole run.

        Tokens that were not wasted. Equals the long-run acceptance rate unless groups were lost or given back.
        """
        return self.trained / self.ended if self.ended else None

    def imbalance(self, leases: LeaseCounts, *, num_open: int) -> str | None:
        """Return in one line what differs from the coordinator's own count; None if nothing does.

        Args:
            leases: totals of the lease book.
            num_open: leases that are open now; 0 after the last phase.
        """
        entries = ", ".join(f"{name}={number}" for name, number in asdict(self).items())
        if leases.opened != self.ended + num_open:
            return f"{leases.opened} leases were opened, but {self.ended} ended ({entries}) and {num_open} are open"
        if leases.returned != self.returned:
            return f"{leases.returned} leases were given back, but {self.returned} are booked as returned ({entries})"
        return None
