"""The groups of one step: fresh against replayed ones, their accuracies and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from curriculum.transition import GroupShare

_FRESH, _REPLAYED = "fresh", "replayed"


class StepCounts:
    """Counts of the groups of the running step. Sums are exact, so the order of the reports does not matter."""

    def __init__(self) -> None:
        self._prompt_tokens: dict[str, list[int]] = {_FRESH: [], _REPLAYED: []}
        """By kind of group: one entry per group that was opened."""
        self._accuracies: dict[str, list[float]] = {_FRESH: [], _REPLAYED: []}
        """By kind of group: one entry per group that was reported with a known accuracy."""

    @property
    def num_groups(self) -> int:
        """Groups opened in this step."""
        return len(self._prompt_tokens[_FRESH]) + self.num_replayed

    @property
    def num_replayed(self) -> int:
        """Replayed groups opened in this step."""
        return len(self._prompt_tokens[_REPLAYED])

    @property
    def replayed_share(self) -> float:
        """Replayed groups / all groups; 0 without groups."""
        return self.num_replayed / self.num_groups if self.num_groups else 0.0

    def add_group(self, *, replayed: bool, prompt_tokens: int) -> None:
        """Count a group that was opened."""
        self._prompt_tokens[_kind(replayed)].append(prompt_tokens)

    def add_outcome(self, *, replayed: bool, accuracy: float | None) -> None:
        """Count the mean accuracy of a reported group, if it has one."""
        if accuracy is not None:
            self._accuracies[_kind(replayed)].append(accuracy)

    def share(self, *, replayed: bool) -> GroupShare:
        """Return the fresh or the replayed side of the step."""
        prompt_tokens, accuracies = self._prompt_tokens[_kind(replayed)], self._accuracies[_kind(replayed)]
        return GroupShare(
            num_groups=len(prompt_tokens),
            num_scored=len(accuracies),
            accuracy=_mean(accuracies),
            prompt_tokens=_mean(prompt_tokens),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            kind: {"prompt_tokens": list(self._prompt_tokens[kind]), "accuracies": list(self._accuracies[kind])}
            for kind in (_FRESH, _REPLAYED)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore saved counts."""
        for kind in (_FRESH, _REPLAYED):
            self._prompt_tokens[kind] = list(state[kind]["prompt_tokens"])
            self._accuracies[kind] = list(state[kind]["accuracies"])


def _kind(replayed: bool) -> str:
    return _REPLAYED if replayed else _FRESH


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None
