"""The coordinator actor, as the loop reaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.processes.joined_calls import KeepBatcher
from curriculum.leases import LeaseCounts
from curriculum.task import TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary


class RayCurriculum:
    """The coordinator actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._keep = KeepBatcher(lambda answered: handle.keep.remote(answered))

    async def open_batch(self, num_tasks: int) -> tuple[int, ...]:
        """Opens leases for the current step; returns their ids."""
        return await self._handle.open_batch.remote(num_tasks)

    async def open_stream(self, num_tasks: int) -> tuple[int, ...]:
        """Opens leases at any time; returns their ids."""
        return await self._handle.open_stream.remote(num_tasks)

    async def open_leases(self) -> tuple[int, ...]:
        """Ids of the leases that are not closed."""
        return await self._handle.open_leases.remote()

    async def keep(self, answered: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """Keeps answered leases open; returns those that are no duplicates."""
        return await self._keep(answered)

    async def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Closes leases without an outcome."""
        return await self._handle.withdraw.remote(lease_ids)

    async def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]:
        """Reports outcomes; returns the leases they closed."""
        return await self._handle.report.remote(outcomes)

    async def finish_step(self, summary: StepSummary) -> CurriculumReport:
        """Closes the step."""
        return await self._handle.finish_step.remote(summary)

    async def phase_state(self) -> PhaseState:
        """Where the curriculum stands."""
        return await self._handle.phase_state.remote()

    async def lease_counts(self) -> LeaseCounts:
        """Totals of the lease book."""
        return await self._handle.lease_counts.remote()

    async def release(self, holder: str) -> None:
        """Gives back the leases of a dead actor."""
        await self._handle.release.remote(holder)

    async def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return await self._handle.state_dict.remote()

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a checkpoint."""
        await self._handle.load_state_dict.remote(state)
