"""Ray shell around the coordinator: one process that every rollout actor and the driver can reach.

Create it with `ray.remote(CoordinatorActor).options(name="coordinator").remote(...)`. Calls run one at a time, in the
order of arrival, so the object inside needs no lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curriculum.config import CurriculumConfig
from curriculum.coordinator import Coordinator
from curriculum.leases import LeaseCounts
from curriculum.task import TaskEntry, TaskLease, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary, Transition


class CoordinatorActor:
    """See `Coordinator`: every method delegates to the method of the same name."""

    def __init__(
        self, *, tasks: Sequence[TaskEntry], config: CurriculumConfig, seed: int, columns: Sequence[Any] = ()
    ) -> None:
        """`columns` holds the reference of the `TaskColumns` of the run; it is passed on, never resolved here."""
        self._coordinator = Coordinator(tasks=tasks, config=config, seed=seed)
        self._columns = tuple(columns)

    def __repr__(self) -> str:
        return "Coordinator"

    def ping(self) -> bool:
        """Answer a health check."""
        return True

    def task_columns(self) -> tuple[Any, ...]:
        """The reference of the `TaskColumns`, for a holder that starts, or starts again."""
        return self._columns

    def open_batch(self, num_tasks: int) -> tuple[int, ...]:
        """Unblocks holders that wait for a lease; returns the ids of the leases."""
        return self._coordinator.open_batch(num_tasks)

    def open_stream(self, num_tasks: int) -> tuple[int, ...]:
        """Likewise, one lease or more at any time; returns their ids."""
        return self._coordinator.open_stream(num_tasks)

    def open_leases(self) -> tuple[int, ...]:
        """Ids of the leases that are not closed."""
        return self._coordinator.open_leases()

    def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Closes leases without an outcome."""
        return self._coordinator.withdraw(lease_ids)

    def lease(self, holder: str) -> TaskLease | None:
        """Never waits: None while the quota of the step is used up."""
        return self._coordinator.lease(holder)

    def lease_up_to(self, holder: str, count: int) -> tuple[TaskLease, ...]:
        """Several leases in one call; fewer where there are fewer."""
        return self._coordinator.lease_up_to(holder, count)

    def release(self, holder: str) -> int:
        """Called when `holder` died; its leases wait again."""
        return self._coordinator.release(holder)

    def requeue(self, lease_id: int, holder: str) -> bool:
        """Called when `holder` could not answer its lease; the lease waits again."""
        return self._coordinator.requeue(lease_id, holder)

    def keep(self, answered: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """Ids of the answered leases that are kept open; the rest are duplicates."""
        return self._coordinator.keep(answered)

    def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]:
        """Ids of the leases that were closed; the rest are duplicates."""
        return self._coordinator.report(outcomes)

    def finish_step(self, summary: StepSummary) -> CurriculumReport:
        """Closes the step, and the phase if it is over."""
        return self._coordinator.finish_step(summary)

    def phase_state(self) -> PhaseState:
        """Where the curriculum stands."""
        return self._coordinator.phase_state()

    def lease_counts(self) -> LeaseCounts:
        """Totals of the lease book."""
        return self._coordinator.lease_counts()

    def transitions(self) -> tuple[Transition, ...]:
        """The audit log."""
        return self._coordinator.transitions()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state for the checkpoint."""
        return self._coordinator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint of the same tasks, phases and seed."""
        self._coordinator.load_state_dict(state)
