"""How hard each task is for the current policy.

The accuracy of a task is that of its most recent visit: Eq. 10 of the paper on the latest group. A running average
would mix in a policy that no longer exists. "Most recent" goes by lease id, so the order in which reports arrive
does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any


def difficulty(mean_accuracy: float, epsilon: float) -> float:
    """Return 1 / (mean accuracy + epsilon): Eq. 10 of the paper, made finite where no sample succeeded."""
    return 1.0 / (mean_accuracy + epsilon)


class DifficultyTable:
    """Visits and latest mean accuracy of every task that was visited."""

    def __init__(self) -> None:
        self._num_visits: Counter[str] = Counter()
        """Reported groups of each task, those without any known accuracy included."""
        self._accuracy: dict[str, float] = {}
        """Mean accuracy of the latest visit with a known accuracy."""
        self._lease_id: dict[str, int] = {}
        """Lease of that visit."""

    def record(self, task_id: str, *, lease_id: int, accuracies: Sequence[float]) -> float | None:
        """Count a visit and refresh the accuracy of the task.

        Args:
            task_id: The visited task.
            lease_id: Lease of the visit; a visit with a lower id than the latest one is counted, no more.
            accuracies: Known accuracies in [0, 1] of the group, unshaped. Empty: the accuracy stays as it was.

        Returns:
            The mean of `accuracies`, or None if it is empty.
        """
        self._num_visits[task_id] += 1
        if not accuracies:
            return None
        mean = fsum(accuracies) / len(accuracies)
        if lease_id > self._lease_id.get(task_id, -1):
            self._accuracy[task_id], self._lease_id[task_id] = mean, lease_id
        return mean

    def mean_accuracy(self, task_id: str) -> float | None:
        """Return the accuracy of the latest scored visit; None if there was none."""
        return self._accuracy.get(task_id)

    def num_visits(self, task_id: str) -> int:
        """Return how many groups of the task were reported."""
        return self._num_visits[task_id]

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values: task id -> [visits, accuracy or null, lease id or -1], sorted by task id."""
        return {
            task_id: [num_visits, self._accuracy.get(task_id), self._lease_id.get(task_id, -1)]
            for task_id, num_visits in sorted(self._num_visits.items())
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved table."""
        self._num_visits = Counter({task_id: num_visits for task_id, (num_visits, _, _) in state.items()})
        scored = {task_id: entry for task_id, entry in state.items() if entry[1] is not None}
        self._accuracy = {task_id: mean for task_id, (_, mean, _) in scored.items()}
        self._lease_id = {task_id: lease_id for task_id, (_, _, lease_id) in scored.items()}
