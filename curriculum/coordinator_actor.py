"""Ray shell around the coordinator: one process that serves every rollout actor and the driver.

Create it with `ray.remote(CoordinatorActor).options(name="coordinator").remote(...)`. Calls run one at a time, in the
order of arrival, so the coordinator needs no lock; only heartbeats have a thread of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from curriculum.config import CurriculumConfig
from curriculum.coordinator import Coordinator
from curriculum.heartbeat import Heartbeat, Lifeline, Pulse
from curriculum.task import TaskEntry


class CoordinatorActor(Coordinator):
    """The coordinator, and the reference of the tasks that its leases name."""

    def __init__(
        self,
        *,
        tasks: Sequence[TaskEntry],
        config: CurriculumConfig,
        seed: int,
        columns: Sequence[Any] = (),
        lifeline: Lifeline | None = None,
    ) -> None:
        """Start at the first phase; `columns` holds the reference of the `TaskColumns`, never resolved here."""
        super().__init__(tasks=tasks, config=config, seed=seed)
        self._columns = tuple(columns)
        self._pulse = Pulse(lifeline)

    def __repr__(self) -> str:
        return "Coordinator"

    def heartbeat(self) -> Heartbeat:
        """Say that the process is alive."""
        return self._pulse.beat(ray.get_runtime_context().get_node_id())

    def task_columns(self) -> tuple[Any, ...]:
        """Return the reference of the `TaskColumns`, for a holder that starts, or starts again."""
        return self._columns
