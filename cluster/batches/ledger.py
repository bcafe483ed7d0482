"""The ledger of a run: the outcome of every lease. It balances, or something was lost or counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from curriculum.leases import LeaseCounts


class GroupOutcome(StrEnum):
    """How a lease ends; every lease ends in exactly one way."""

    TRAINED = "trained"
    """Its group was in a batch that the learner took."""
    NO_VARIANCE = "no_variance"
    """All known answers of its group are worth the same; dynamic sampling replaced it."""
    UNKNOWN = "unknown"
    """Fewer than two answers of its group have a known reward."""
    TOO_OLD = "too_old"
    """Its group was sampled by weights older than the bound allows."""
    FAILED = "failed"
    """Its group was lost before it was scored."""
    RETURNED = "returned"
    """Its phase ended before its group was used."""


OutcomeCounts = Counter[GroupOutcome]
"""Number of leases by how they ended."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Leases that ended, over the run and its resumes. It moves when a step ends, so it is part of every checkpoint."""

    trained: int = 0
    no_variance: int = 0
    unknown: int = 0
    too_old: int = 0
    failed: int = 0
    returned: int = 0

    def add(self, outcome_counts: Mapping[GroupOutcome, int]) -> None:
        """Count leases that ended."""
        for outcome, number in outcome_counts.items():
            setattr(self, outcome, getattr(self, outcome) + number)

    @property
    def ended(self) -> int:
        """Leases that ended, in whatever way."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def trained_share(self) -> float | None:
        """Trained groups / leases that ended; None before the first."""
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
