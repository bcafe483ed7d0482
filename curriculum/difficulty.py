"""How hard each task is for the current policy, and how hard it was for the base model.

The accuracy of a task is that of its most recent visit: Eq. 10 of the paper on the latest group. A running average
would mix in a policy that no longer exists. "Most recent" goes by lease id, so the order in which reports arrive
does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

EPSILON = 0.125
"""Added to the mean accuracy in Eq. 10; 1/8 keeps no success and one of eight apart."""


def difficulty(mean_accuracy: float) -> float:
    """Return 1 / (mean accuracy + 1/8): Eq. 10 of the paper, made finite where no sample succeeded."""
    return 1.0 / (mean_accuracy + EPSILON)


class DifficultyTable:
    """Visits and latest mean accuracy of every task that was visited, and what was measured under the base model."""

    def __init__(self) -> None:
        self._num_visits: Counter[str] = Counter()
        """Groups of each task, those without a known accuracy included."""
        self._accuracy: dict[str, float] = {}
        """Mean accuracy of the latest visit with a known accuracy."""
        self._lease_id: dict[str, int] = {}
        """Lease of that visit."""
        self._base: dict[str, float] = {}
        """Mean accuracy under the base model."""

    def record(self, task_id: str, *, lease_id: int, accuracy: float | None) -> None:
        """Count a visit and refresh the accuracy of the task.

        Args:
            task_id: The visited task.
            lease_id: Lease of the visit; a visit with a lower id than the latest one is counted, no more. For a group
                that was sampled without a lease: that of the latest lease in the run, -1 before the first.
            accuracy: Mean accuracy of the group in [0, 1]; None leaves the accuracy of the task as it was.
        """
        self._num_visits[task_id] += 1
        if accuracy is not None and lease_id >= self._lease_id.get(task_id, -1):
            self._accuracy[task_id], self._lease_id[task_id] = accuracy, lease_id

    def record_base(self, task_id: str, accuracy: float) -> None:
        """Note the mean accuracy of a task under the base model."""
        self._base[task_id] = accuracy

    def mean_accuracy(self, task_id: str) -> float | None:
        """Return the accuracy of the latest scored visit; None if there was none."""
        return self._accuracy.get(task_id)

    def base_accuracy(self, task_id: str) -> float | None:
        """Return the accuracy under the base model; None if it was not measured, or no reward was known."""
        return self._base.get(task_id)

    def num_visits(self, task_id: str) -> int:
        """Return how many groups of the task were reported."""
        return self._num_visits[task_id]

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values: `visits`, task id -> [visits, accuracy or null, lease id or -1]; `base`, accuracies."""
        return {
            "visits": {
                task_id: [num_visits, self._accuracy.get(task_id), self._lease_id.get(task_id, -1)]
                for task_id, num_visits in sorted(self._num_visits.items())
            },
            "base": dict(sorted(self._base.items())),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved table."""
        visits = state["visits"]
        self._num_visits = Counter({task_id: num_visits for task_id, (num_visits, _, _) in visits.items()})
        scored = {task_id: entry for task_id, entry in visits.items() if entry[1] is not None}
        self._accuracy = {task_id: mean for task_id, (_, mean, _) in scored.items()}
        self._lease_id = {task_id: lease_id for task_id, (_, _, lease_id) in scored.items()}
        self._base = dict(state["base"])
