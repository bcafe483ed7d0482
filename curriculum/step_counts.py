"""What one step consisted of: fresh against replayed groups, their accuracies and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any

from curriculum.transition import GroupShare


@dataclass(slots=True, kw_only=True)
class _Side:
    prompt_tokens: list[int] = field(default_factory=list)
    """One entry per group that was opened."""
    accuracies: list[float] = field(default_factory=list)
    """One entry per group that was reported with a known accuracy."""

    def share(self) -> GroupShare:
        return GroupShare(
            num_groups=len(self.prompt_tokens),
            num_scored=len(self.accuracies),
            accuracy=_mean(self.accuracies),
            prompt_tokens=_mean(self.prompt_tokens),
        )


class StepCounts:
    """Counts the groups of the running step. Sums are exact, so the order of the reports leaves no trace."""

    def __init__(self) -> None:
        self._fresh = _Side()
        self._replayed = _Side()

    @property
    def num_groups(self) -> int:
        """Groups opened in this step."""
        return len(self._fresh.prompt_tokens) + self.num_replayed

    @property
    def num_replayed(self) -> int:
        """Replayed groups opened in this step."""
        return len(self._replayed.prompt_tokens)

    @property
    def replayed_share(self) -> float:
        """Replayed groups / all groups; 0 without groups."""
        return self.num_replayed / self.num_groups if self.num_groups else 0.0

    def add_group(self, *, replayed: bool, prompt_tokens: int) -> None:
        """Count a group that was opened."""
        self._side(replayed).prompt_tokens.append(prompt_tokens)

    def add_outcome(self, *, replayed: bool, accuracy: float | None) -> None:
        """Count the mean accuracy of a reported group, if it has one."""
        if accuracy is not None:
            self._side(replayed).accuracies.append(accuracy)

    def shares(self) -> tuple[GroupShare, GroupShare]:
        """(fresh, replayed)."""
        return self._fresh.share(), self._replayed.share()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"fresh": asdict(self._fresh), "replayed": asdict(self._replayed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved tally."""
        self._fresh = _Side(**state["fresh"])
        self._replayed = _Side(**state["replayed"])

    def _side(self, replayed: bool) -> _Side:
        return self._replayed if replayed else self._fresh


def _mean(values: list[float] | list[int]) -> float | None:
    return fsum(values) / len(values) if values else None
