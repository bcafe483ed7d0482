"""Ray shell around the coordinator: one process that serves every rollout actor and the driver.

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
    """A `Coordinator` in a process of its own; every method calls the method of the same name."""

    def __init__(
        self, *, tasks: Sequence[TaskEntry], config: CurriculumConfig, seed: int, columns: Sequence[Any] = ()
    ) -> None:
        """Take over `columns`, the reference of the run's `TaskColumns`; it is passed on, never resolved here."""
        self._coordinator = Coordinator(tasks=tasks, config=config, seed=seed)
        self._columns = tuple(columns)

    def __repr__(self) -> str:
        return "Coordinator"

    def ping(self) -> bool:
        """Answer a health check."""
        return True

    def task_columns(self) -> tuple[Any, ...]:
        """Return the reference of the `TaskColumns`, for a holder that starts, or starts again."""
        return self._columns

    def open_batch(self, num_tasks: int) -> tuple[int, ...]:
        """Open leases for the current step, which unblocks waiting holders; return the ids."""
        return self._coordinator.open_batch(num_tasks)

    def open_stream(self, num_tasks: int) -> tuple[int, ...]:
        """Open leases at any time, which unblocks waiting holders; return the ids."""
        return self._coordinator.open_stream(num_tasks)

    def open_leases(self) -> tuple[int, ...]:
        """Return the ids of the leases that are not closed."""
        return self._coordinator.open_leases()

    def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Close leases without an outcome; return how many were open."""
        return self._coordinator.withdraw(lease_ids)

    def lease(self, holder: str) -> TaskLease | None:
        """Hand out one lease at once; None while the quota of the step is used up."""
        return self._coordinator.lease(holder)

    def lease_up_to(self, holder: str, count: int) -> tuple[TaskLease, ...]:
        """Hand out at most `count` leases at once; fewer where fewer are open."""
        return self._coordinator.lease_up_to(holder, count)

    def release(self, holder: str) -> int:
        """Take back the leases of a `holder` that died; return how many."""
        return self._coordinator.release(holder)

    def requeue(self, lease_id: int, holder: str) -> bool:
        """Take back a lease that `holder` could not answer; False where it no longer holds it."""
        return self._coordinator.requeue(lease_id, holder)

    def keep(self, answered: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """Keep answered leases open; return their ids, without duplicates."""
        return self._coordinator.keep(answered)

    def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]:
        """Record outcomes; return the ids of the leases they closed, without duplicates."""
        return self._coordinator.report(outcomes)

    def finish_step(self, summary: StepSummary) -> CurriculumReport:
        """Close the step, and the phase if it is over."""
        return self._coordinator.finish_step(summary)

    def phase_state(self) -> PhaseState:
        """Return the running phase, its progress, and the open leases."""
        return self._coordinator.phase_state()

    def lease_counts(self) -> LeaseCounts:
        """Return the totals of the lease book."""
        return self._coordinator.lease_counts()

    def transitions(self) -> tuple[Transition, ...]:
        """Return the audit log: every transition so far."""
        return self._coordinator.transitions()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint as JSON values."""
        return self._coordinator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint of the same tasks, phases and seed."""
        self._coordinator.load_state_dict(state)
