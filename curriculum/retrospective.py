"""The retrospective pool: hard tasks of earlier phases that are replayed in the running one (paper section 2.3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from curriculum.difficulty import difficulty
from curriculum.sampler import Purpose, generator, weighted_order

AccuracyOf = Callable[[str], float | None]
"""Latest mean accuracy of a task id; None if it was never scored."""


def draw_pool(
    accuracies: Mapping[str, float | None],
    *,
    selection: Literal["zero_accuracy", "difficulty"],
    epsilon: float,
    max_pool_size: int,
    seed: int,
    phase: int,
) -> tuple[int, tuple[str, ...]]:
    """Draw the pool of `phase` from the tasks of the earlier phases.

    `zero_accuracy` takes the tasks whose mean accuracy is zero, all with the same chance. `difficulty` takes the tasks
    that are not solved (mean accuracy below one), with weights 1 / (mean accuracy + epsilon), without replacement.
    Tasks that were never scored have no difficulty and stay out.

    Args:
        accuracies: Latest mean accuracy of every task of the earlier phases.
        selection: Which tasks qualify.
        epsilon: Added to the mean accuracy before the division.
        max_pool_size: Largest pool.
        seed: Run seed.
        phase: Index of the phase that will replay the pool.

    Returns:
        The number of tasks that qualified, and the drawn ones in the order of the draw.
    """
    qualifies = _has_no_success if selection == "zero_accuracy" else _is_unsolved
    qualified = {task_id: mean for task_id, mean in accuracies.items() if mean is not None and qualifies(mean)}
    weights = _weights(list(qualified.values()), epsilon if selection == "difficulty" else None)
    order = weighted_order(weights, generator(seed, Purpose.POOL, phase))
    task_ids = list(qualified)
    return len(task_ids), tuple(task_ids[index] for index in order[:max_pool_size])


class RetrospectivePool:
    """The pool of one phase; it gives out each member at most once per pass and at most once per draw.

    Each pass draws a new order from the current difficulties, so with few replay slots the hardest members come
    first. A member leaves while all known samples of its latest visit are correct: a group without a wrong answer
    teaches nothing. A member with some successes stays: its groups have the variance that training needs.
    Only the beginning of a pass looks at every member.

    Args:
        members: Task ids drawn at the transition.
        accuracy_of: Returns the current accuracy of a task; call `refresh` for every one that changes.
        epsilon: For weights 1 / (mean accuracy + epsilon); None for equal weights.
        seed: Run seed.
        phase: Index of the phase that replays the pool.
    """

    def __init__(
        self, members: Sequence[str], *, accuracy_of: AccuracyOf, epsilon: float | None, seed: int, phase: int
    ) -> None:
        self._accuracy_of = accuracy_of
        self._epsilon = epsilon
        self._seed = seed
        self._phase = phase
        self._fill(members, remaining=(), num_passes=0)

    @property
    def num_live(self) -> int:
        """Members that are not solved."""
        return len(self._members) - len(self._solved)

    def refresh(self, task_id: str) -> None:
        """Look again at the accuracy of a task, member or not."""
        if task_id not in self._members:
            return
        if self._is_solved(task_id):
            self._solved.add(task_id)
            self._solved_in_pass.add(task_id)
        else:
            self._solved.discard(task_id)
            self._solved_in_pass.discard(task_id)

    def remove(self, task_id: str) -> None:
        """Take a task out for good, member or not."""
        self._members.pop(task_id, None)
        self._remaining.pop(task_id, None)
        self._solved.discard(task_id)
        self._solved_in_pass.discard(task_id)

    def draw(self, num_tasks: int) -> list[str]:
        """Return the next members that are not solved: `num_tasks`, or all of them if there are fewer."""
        self._drop_solved()
        num_tasks = min(num_tasks, self.num_live)
        drawn = self._take(num_tasks, taken_before=())
        if len(drawn) < num_tasks:
            self._begin_pass()
            drawn += self._take(num_tasks - len(drawn), taken_before=drawn)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"members": list(self._members), "remaining": list(self._remaining), "num_passes": self._num_passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same phase and seed; the accuracies have been restored before."""
        self._fill(state["members"], remaining=state["remaining"], num_passes=state["num_passes"])

    def _fill(self, members: Sequence[str], *, remaining: Sequence[str], num_passes: int) -> None:
        self._members = dict.fromkeys(members)  # in the order of the draw
        self._remaining = OrderedDict.fromkeys(remaining)
        self._num_passes = num_passes
        self._solved = {task_id for task_id in self._members if self._is_solved(task_id)}
        self._solved_in_pass = set(self._solved)
        """Solved members that the pass may still hold; one that is unsolved again by the next draw keeps its turn."""

    def _is_solved(self, task_id: str) -> bool:
        return not _is_unsolved(self._accuracy_of(task_id) or 0.0)

    def _drop_solved(self) -> None:
        for task_id in self._solved_in_pass:
            self._remaining.pop(task_id, None)
        self._solved_in_pass.clear()

    def _begin_pass(self) -> None:
        live = [task_id for task_id in self._members if task_id not in self._solved]
        weights = _weights([self._accuracy_of(task_id) or 0.0 for task_id in live], self._epsilon)
        rng = generator(self._seed, Purpose.REPLAY, self._phase, self._num_passes)
        self._remaining = OrderedDict.fromkeys(live[index] for index in weighted_order(weights, rng))
        self._num_passes += 1

    def _take(self, num_tasks: int, taken_before: Sequence[str]) -> list[str]:
        """Take the next of the pass; those of `taken_before` are skipped and keep their turn."""
        before = set(taken_before)
        taken = list(islice((task_id for task_id in self._remaining if task_id not in before), num_tasks))
        for task_id in taken:
            del self._remaining[task_id]
        return taken


def _has_no_success(mean_accuracy: float) -> bool:
    return mean_accuracy == 0.0


def _is_unsolved(mean_accuracy: float) -> bool:
    return mean_accuracy < 1.0


def _weights(accuracies: Sequence[float], epsilon: float | None) -> list[float]:
    if epsilon is None:
        return [1.0] * len(accuracies)
    return [difficulty(mean, epsilon) for mean in accuracies]
