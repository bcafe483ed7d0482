"""Which tasks of earlier phases a phase replays, by either selection, and which of them are measured first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from curriculum.config import RetrospectiveConfig
from curriculum.difficulty import DifficultyTable
from curriculum.hard_tasks import HardTasks
from curriculum.retrospective import MAX_POOL_SIZE, RetrospectivePool, draw_pool


class ReplayPool(Protocol):
    """Tasks of earlier phases to replay."""

    @property
    def num_live(self) -> int:
        """Tasks that are not solved."""
        ...

    def live(self) -> list[str]:
        """Return the tasks that are not solved."""
        ...

    def refresh(self, task_id: str) -> None:
        """Look again at a task whose accuracy has changed, or whether it is taken; it need not be one to replay."""
        ...

    def remove(self, task_id: str) -> None:
        """Take a task out for good; it need not be one to replay."""
        ...

    def draw(self, num_tasks: int) -> list[str]:
        """Return `num_tasks` tasks that are neither solved nor taken, or all of them if there are fewer."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same phase and seed."""
        ...


def open_pool(
    config: RetrospectiveConfig | None,
    earlier: Sequence[str],
    table: DifficultyTable,
    *,
    is_taken: Callable[[str], bool],
    seed: int,
    phase: int,
) -> tuple[int, ReplayPool]:
    """Return how many tasks qualify for replay in a phase, and its pool.

    Args:
        config: selection and difficulty; None replays nothing.
        earlier: tasks of the earlier phases that are not in quarantine.
        table: their accuracies.
        is_taken: whether a task cannot be drawn at the moment.
        seed: run seed.
        phase: index of the phase that replays them.
    """
    if config is not None and config.selection == "difficulty":

        def weighing(task_id: str) -> float | None:
            latest = table.mean_accuracy(task_id)
            if latest is None or latest == 1.0:
                return None
            base = table.base_accuracy(task_id) if config.difficulty == "base" else None
            return latest if base is None else base

        pool = HardTasks(earlier, accuracy_of=weighing, is_taken=is_taken, seed=seed, phase=phase)
        return pool.num_live, pool
    accuracies = {task_id: table.mean_accuracy(task_id) for task_id in (earlier if config else ())}
    num_candidates, members = draw_pool(accuracies, seed=seed, phase=phase)
    return num_candidates, RetrospectivePool(
        members, accuracy_of=table.mean_accuracy, is_taken=is_taken, seed=seed, phase=phase
    )


def num_to_measure(config: RetrospectiveConfig | None, num_earlier: int, *, is_first: bool) -> int:
    """Return of how many tasks a group is sampled to measure them when a phase begins, at most.

    Args:
        config: says whether and when; None replays nothing.
        num_earlier: for the first phase the tasks of all phases but the last, for another one those of earlier phases.
        is_first: whether it is the first phase, so that the base model is measured.
    """
    if config is None or config.difficulty != ("base" if is_first else "transition"):
        return 0
    return num_earlier if is_first else min(num_earlier, MAX_POOL_SIZE)


def tasks_to_measure(
    config: RetrospectiveConfig | None, earlier: Collection[str], table: DifficultyTable, *, is_first: bool
) -> tuple[str, ...]:
    """Return those of the tasks of `num_to_measure` that are measured: the hardest by their latest visit.

    Tasks that were never scored are taken for such without a success.
    """
    count = num_to_measure(config, len(earlier), is_first=is_first)
    if not count:
        return ()
    return tuple(sorted(earlier, key=lambda task_id: table.mean_accuracy(task_id) or 0.0)[:count])
