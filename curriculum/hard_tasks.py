"""Replay by Eq. 10 of the paper: every slot is drawn from all earlier tasks that are not solved now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from curriculum.difficulty import difficulty
from curriculum.sampler import Purpose, generator
from curriculum.weighted_draw import WeightedDraw

WEIGHT_UNITS = 2**32
"""Weights are counted in units of 1 / WEIGHT_UNITS."""


class HardTasks:
    """Importance sampling of the tasks of earlier phases, with probabilities proportional to their difficulty.

    A draw is independent of those before it, so over many batches the visits of two tasks that stay as they are have
    the ratio of their weights. Within a batch no task is drawn twice, nor while it is taken: the slots of a batch are
    drawn one after the other from those that are left. A task leaves while all known answers of its latest visit are
    right, and is there again when a later visit shows that it is not solved after all.

    A draw is a function of (seed, phase, tasks drawn so far in the phase) and of the weights.

    Args:
        task_ids: Tasks of the earlier phases.
        accuracy_of: Mean accuracy that the weight of a task is made of; None while it is not to be drawn, because it is
            solved or was never scored. Call `refresh` for every task whose answer changes.
        is_taken: Whether a task cannot be drawn at the moment; likewise.
        seed: Run seed.
        phase: Index of the phase that replays the tasks.
    """

    def __init__(
        self,
        task_ids: Sequence[str],
        *,
        accuracy_of: Callable[[str], float | None],
        is_taken: Callable[[str], bool],
        seed: int,
        phase: int,
    ) -> None:
        self._task_ids = tuple(task_ids)
        self._rows = {task_id: row for row, task_id in enumerate(self._task_ids)}
        self._accuracy_of = accuracy_of
        self._is_taken = is_taken
        self._seed = seed
        self._phase = phase
        self._num_drawn = 0
        weights_N = np.fromiter(map(self._weight, self._task_ids), np.int64, len(self._task_ids))
        self._is_live_N = weights_N > 0
        self.num_live = int(self._is_live_N.sum())
        """Tasks that are not solved, taken or not."""
        weights_N[[self._rows[task_id] for task_id in self._task_ids if is_taken(task_id)]] = 0
        self._weights = WeightedDraw(weights_N)

    def live(self) -> list[str]:
        """Return the tasks that are not solved, taken or not."""
        return [task_id for task_id, is_live in zip(self._task_ids, self._is_live_N, strict=True) if is_live]

    def refresh(self, task_id: str) -> None:
        """Look at a task again, an earlier one or not."""
        if task_id in self._rows:
            self._set(self._rows[task_id], self._weight(task_id))

    def remove(self, task_id: str) -> None:
        """Take a task out for good."""
        if task_id in self._rows:
            self._set(self._rows.pop(task_id), 0)

    def draw(self, num_tasks: int) -> list[str]:
        """Return `num_tasks` tasks, or all that are neither solved nor taken if there are fewer; no task twice.

        They are to be taken, or refreshed, by the caller.
        """
        rng = generator(self._seed, Purpose.HARD, self._phase, self._num_drawn)
        drawn: list[str] = []
        while len(drawn) < num_tasks and (total := self._weights.total):
            row = self._weights.find(int(rng.integers(total)))
            self._weights.set(row, 0)
            drawn.append(self._task_ids[row])
        self._num_drawn += len(drawn)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; weights follow from the accuracies."""
        return {"num_drawn": self._num_drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same phase and seed."""
        self._num_drawn = int(state["num_drawn"])

    def _weight(self, task_id: str) -> int:
        accuracy = self._accuracy_of(task_id)
        return 0 if accuracy is None else round(difficulty(accuracy) * WEIGHT_UNITS)

    def _set(self, row: int, weight: int) -> None:
        self.num_live += (weight > 0) - int(self._is_live_N[row])
        self._is_live_N[row] = weight > 0
        self._weights.set(row, 0 if self._is_taken(self._task_ids[row]) else weight)
