"""The retrospective pool: hard tasks of earlier phases that are replayed in the running one (paper section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    qualifies = _is_hopeless if selection == "zero_accuracy" else _is_unsolved
    qualified = {task_id: mean for task_id, mean in accuracies.items() if mean is not None and qualifies(mean)}
    weights = _weights(list(qualified.values()), epsilon if selection == "difficulty" else None)
    order = weighted_order(weights, generator(seed, Purpose.POOL, phase))
    task_ids = list(qualified)
    return len(task_ids), tuple(task_ids[index] for index in order[:max_pool_size])


class RetrospectivePool:
    """Serves the pool of one phase, each member at most once per pass and at most once per draw.

    A pass is an order drawn anew from the current difficulties, so with few replay slots the hardest members come
    first. A member leaves while all known samples of its latest visit are correct: a group without a wrong answer
    teaches nothing. One that merely begins to succeed stays, for that is when it has variance to learn from.

    Args:
        members: Task ids drawn at the transition.
        epsilon: For weights 1 / (mean accuracy + epsilon); None for equal weights.
        seed: Run seed.
        phase: Index of the phase that replays the pool.
    """

    def __init__(self, members: Sequence[str], *, epsilon: float | None, seed: int, phase: int) -> None:
        self._members = tuple(members)
        self._epsilon = epsilon
        self._seed = seed
        self._phase = phase
        self._remaining: list[str] = []
        self._num_passes = 0

    def num_live(self, accuracy_of: AccuracyOf) -> int:
        """Members that are not solved."""
        return len(self._live(accuracy_of))

    def draw(self, num_tasks: int, accuracy_of: AccuracyOf) -> list[str]:
        """The next members that are not solved: `num_tasks`, or all of them if there are fewer."""
        live = self._live(accuracy_of)
        num_tasks = min(num_tasks, len(live))
        unsolved = set(live)
        self._remaining = [task_id for task_id in self._remaining if task_id in unsolved]
        drawn = self._take(num_tasks, taken_before=())
        if len(drawn) < num_tasks:
            self._begin_pass(live, accuracy_of)
            drawn += self._take(num_tasks - len(drawn), taken_before=drawn)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"members": list(self._members), "remaining": list(self._remaining), "num_passes": self._num_passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same phase and seed."""
        self._members = tuple(state["members"])
        self._remaining = list(state["remaining"])
        self._num_passes = state["num_passes"]

    def _live(self, accuracy_of: AccuracyOf) -> list[str]:
        return [task_id for task_id in self._members if _is_unsolved(accuracy_of(task_id) or 0.0)]

    def _begin_pass(self, live: Sequence[str], accuracy_of: AccuracyOf) -> None:
        weights = _weights([accuracy_of(task_id) or 0.0 for task_id in live], self._epsilon)
        rng = generator(self._seed, Purpose.REPLAY, self._phase, self._num_passes)
        self._remaining = [live[index] for index in weighted_order(weights, rng)]
        self._num_passes += 1

    def _take(self, num_tasks: int, taken_before: Sequence[str]) -> list[str]:
        """The next of the pass; those of `taken_before` are skipped and keep their turn."""
        before = set(taken_before)
        taken = [task_id for task_id in self._remaining if task_id not in before][:num_tasks]
        gone = set(taken)
        self._remaining = [task_id for task_id in self._remaining if task_id not in gone]
        return taken


def _is_hopeless(mean_accuracy: float) -> bool:
    return mean_accuracy == 0.0


def _is_unsolved(mean_accuracy: float) -> bool:
    return mean_accuracy < 1.0


def _weights(accuracies: Sequence[float], epsilon: float | None) -> list[float]:
    if epsilon is None:
        return [1.0] * len(accuracies)
    return [difficulty(mean, epsilon) for mean in accuracies]
