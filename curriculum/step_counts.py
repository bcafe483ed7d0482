"""Counts of one step: fresh against replayed groups, their accuracies and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any


@dataclass(slots=True, kw_only=True)
class GroupCounts:
    """The fresh or the replayed groups of a step."""

    prompt_tokens: list[int] = field(default_factory=list[int])
    """One entry per group that was opened."""
    accuracies: list[float] = field(default_factory=list[float])
    """One entry per group that was reported with enough known rewards."""
    num_reported: int = 0
    """Groups that were reported."""

    @property
    def accuracy(self) -> float | None:
        """Mean over the scored groups of their mean accuracy; None without any."""
        return mean(self.accuracies)

    @property
    def is_telling(self) -> bool:
        """Whether at least half of the reported groups have an accuracy, so that their mean speaks for all."""
        return bool(self.accuracies) and 2 * len(self.accuracies) >= self.num_reported

    @property
    def mean_prompt_tokens(self) -> float | None:
        """Mean prompt length in tokens; None without groups."""
        return mean(self.prompt_tokens)


class StepCounts:
    """The groups of the running step. Sums are exact, so the order of the reports does not matter."""

    def __init__(self) -> None:
        self.fresh = GroupCounts()
        self.replayed = GroupCounts()

    @property
    def num_groups(self) -> int:
        """Groups opened in this step."""
        return len(self.fresh.prompt_tokens) + self.num_replayed

    @property
    def num_replayed(self) -> int:
        """Replayed groups opened in this step."""
        return len(self.replayed.prompt_tokens)

    @property
    def replayed_share(self) -> float:
        """Replayed groups / all groups; 0 without groups."""
        return self.num_replayed / self.num_groups if self.num_groups else 0.0

    def add_group(self, *, replayed: bool, prompt_tokens: int) -> None:
        """Count a group that was opened."""
        self._side(replayed).prompt_tokens.append(prompt_tokens)

    def add_outcome(self, *, replayed: bool, accuracy: float | None) -> None:
        """Count a reported group, and its mean accuracy if it has one."""
        side = self._side(replayed)
        side.num_reported += 1
        if accuracy is not None:
            side.accuracies.append(accuracy)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"fresh": asdict(self.fresh), "replayed": asdict(self.replayed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.fresh = GroupCounts(**state["fresh"])
        self.replayed = GroupCounts(**state["replayed"])

    def _side(self, replayed: bool) -> GroupCounts:
        return self.replayed if replayed else self.fresh


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing; whatever their order."""
    return fsum(values) / len(values) if values else None
