"""The retrospective pool of the paper's run: tasks without a success in earlier phases (paper section 3.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from curriculum.sampler import Purpose, generator, random_order

MAX_POOL_SIZE = 1000
"""Most tasks that one phase replays in this way, and that are measured at a transition."""


def draw_pool(accuracies: Mapping[str, float | None], *, seed: int, phase: int) -> tuple[int, tuple[str, ...]]:
    """Draw the pool of `phase` from the tasks of the earlier phases whose mean accuracy is zero.

    Tasks that were never scored stay out.

    Args:
        accuracies: Latest mean accuracy of every task of the earlier phases.
        seed: Run seed.
        phase: Index of the phase that will replay the pool.

    Returns:
        The number of tasks that qualified, and at most `MAX_POOL_SIZE` of them in the order of the draw.
    """
    qualified = [task_id for task_id, mean in accuracies.items() if mean == 0.0]
    order = random_order(len(qualified), generator(seed, Purpose.POOL, phase))
    return len(qualified), tuple(qualified[index] for index in order[:MAX_POOL_SIZE])


class RetrospectivePool:
    """The pool of one phase; it gives out each member at most once per pass and at most once per draw.

    Each pass has a new order. A member leaves while all known samples of its latest visit are correct: a group without
    a wrong answer teaches nothing. A member with some successes stays: its groups have the variance that training
    needs. One that is taken keeps its turn. Only the beginning of a pass looks at every member.

    Args:
        members: Task ids drawn at the transition.
        accuracy_of: Returns the latest accuracy of a task; call `refresh` for every one that changes.
        is_taken: Whether a task cannot be drawn at the moment.
        seed: Run seed.
        phase: Index of the phase that replays the pool.
    """

    def __init__(
        self,
        members: Sequence[str],
        *,
        accuracy_of: Callable[[str], float | None],
        is_taken: Callable[[str], bool],
        seed: int,
        phase: int,
    ) -> None:
        self._accuracy_of = accuracy_of
        self._is_taken = is_taken
        self._seed = seed
        self._phase = phase
        self._fill(members, remaining=(), num_passes=0)

    @property
    def num_live(self) -> int:
        """Members that are not solved."""
        return len(self._members) - len(self._solved)

    def live(self) -> list[str]:
        """Return the members that are not solved, in the order of the draw."""
        return [task_id for task_id in self._members if task_id not in self._solved]

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
        """Return the next members that are neither solved nor taken: `num_tasks`, or all if there are fewer."""
        self._drop_solved()
        drawn = self._take(num_tasks, taken_before=())
        if len(drawn) < num_tasks and self._has_another(drawn):
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
        return self._accuracy_of(task_id) == 1.0

    def _drop_solved(self) -> None:
        for task_id in self._solved_in_pass:
            self._remaining.pop(task_id, None)
        self._solved_in_pass.clear()

    def _has_another(self, drawn: Sequence[str]) -> bool:
        return any(not self._is_taken(task_id) and task_id not in drawn for task_id in self.live())

    def _begin_pass(self) -> None:
        live = self.live()
        rng = generator(self._seed, Purpose.REPLAY, self._phase, self._num_passes)
        self._remaining = OrderedDict.fromkeys(live[index] for index in random_order(len(live), rng))
        self._num_passes += 1

    def _take(self, num_tasks: int, taken_before: Sequence[str]) -> list[str]:
        """Take the next of the pass; those of `taken_before`, and those that are taken, are skipped and keep theirs."""
        before = set(taken_before)
        free = (task_id for task_id in self._remaining if task_id not in before and not self._is_taken(task_id))
        taken = list(islice(free, num_tasks))
        for task_id in taken:
            del self._remaining[task_id]
        return taken
