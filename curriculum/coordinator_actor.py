"""Ray shell around the coordinator: one process that serves every rollout actor and the driver.

Create it with `ray.remote(CoordinatorActor).options(name="coordinator").remote(...)`. Calls run one at a time, in the
order of arrival, so the coordinator needs no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curriculum.config import CurriculumConfig
from curriculum.coordinator import Coordinator
from curriculum.task import TaskEntry


class CoordinatorActor(Coordinator):
    """The coordinator, and the reference of the tasks that its leases name."""

    def __init__(
        self, *, tasks: Sequence[TaskEntry], config: CurriculumConfig, seed: int, columns: Sequence[Any] = ()
    ) -> None:
        """Start at the first phase; `columns` holds the reference of the `TaskColumns`, never resolved here."""
        super().__init__(tasks=tasks, config=config, seed=seed)
        self._columns = tuple(columns)

    def __repr__(self) -> str:
        return "Coordinator"

    def task_columns(self) -> tuple[Any, ...]:
        """Return the reference of the `TaskColumns`, for a holder that starts, or starts again."""
        return self._columns
