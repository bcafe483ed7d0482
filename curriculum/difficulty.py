"""How hard each task is for the current policy.

The accuracy of a task is that of its most recent visit: Eq. 10 of the paper on the latest group. A running average
would remember a policy that no longer exists. "Most recent" goes by lease id, so the order in which reports arrive
does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any


def difficulty(mean_accuracy: float, epsilon: float) -> float:
    """1 / (mean accuracy + epsilon): Eq. 10 of the paper, made finite where no sample succeeded."""
    return 1.0 / (mean_accuracy + epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visits:
    num_visits: int
    """Reported groups, those without any known accuracy included."""
    mean_accuracy: float | None
    """Of the latest visit with a known accuracy."""
    lease_id: int
    """Lease of that visit; -1 without one."""


_UNVISITED = _Visits(num_visits=0, mean_accuracy=None, lease_id=-1)


class DifficultyTable:
    """Visits and latest mean accuracy of every task that was visited."""

    def __init__(self) -> None:
        self._visits: dict[str, _Visits] = {}

    def record(self, task_id: str, *, lease_id: int, accuracies: Sequence[float]) -> float | None:
        """Count a visit and refresh the accuracy of the task.

        Args:
            task_id: The visited task.
            lease_id: Lease of the visit; a visit with a lower id than the latest one is counted, no more.
            accuracies: Known accuracies in [0, 1] of the group, unshaped. Empty: the accuracy stays as it was.

        Returns:
            The mean of `accuracies`, or None if it is empty.
        """
        before = self._visits.get(task_id, _UNVISITED)
        mean = fsum(accuracies) / len(accuracies) if accuracies else None
        is_latest = mean is not None and lease_id > before.lease_id
        self._visits[task_id] = _Visits(
            num_visits=before.num_visits + 1,
            mean_accuracy=mean if is_latest else before.mean_accuracy,
            lease_id=lease_id if is_latest else before.lease_id,
        )
        return mean

    def mean_accuracy(self, task_id: str) -> float | None:
        """Accuracy of the latest scored visit; None if there was none."""
        return self._visits.get(task_id, _UNVISITED).mean_accuracy

    def num_visits(self, task_id: str) -> int:
        """Reported groups of the task."""
        return self._visits.get(task_id, _UNVISITED).num_visits

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: task id -> [visits, accuracy, lease id], sorted by task id."""
        return {
            task_id: [entry.num_visits, entry.mean_accuracy, entry.lease_id]
            for task_id, entry in sorted(self._visits.items())
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved table."""
        self._visits = {
            task_id: _Visits(num_visits=num_visits, mean_accuracy=mean, lease_id=lease_id)
            for task_id, (num_visits, mean, lease_id) in state.items()
        }
