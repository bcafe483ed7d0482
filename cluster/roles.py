"""What the loop needs of the other processes; `handles.py` fulfils it with Ray actors, the tests with plain objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.rollout import Sampling
from cluster.batch import BatchGroup
from curriculum.leases import LeaseCounts
from curriculum.task import Demonstration, Task, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary
from learner.microbatch import SftReport, StepReport
from reward.circuit import JudgeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update, received by every engine."""

    version: int
    num_tensors: int
    num_bytes: int
    num_engines: int
    seconds: float


class Curriculum(Protocol):
    """Decides what to train on next."""

    async def open_batch(self, num_tasks: int) -> None: ...
    async def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]: ...
    async def finish_step(self, summary: StepSummary) -> CurriculumReport: ...
    async def phase_state(self) -> PhaseState: ...
    async def lease_counts(self) -> LeaseCounts: ...
    async def state_dict(self) -> dict[str, Any]: ...
    async def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Rollouts(Protocol):
    """Samples and scores groups."""

    async def collect(self, num_groups: int, sampling: Sampling) -> list[BatchGroup]:
        """Answers leased tasks until `num_groups` groups are scored; in the order of their leases."""
        ...

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[BatchGroup]:
        """Answers given tasks outside the curriculum, in their order."""
        ...

    async def judge_events(self) -> list[JudgeEvent]:
        """What the circuit breakers of the judges did since the last call."""
        ...


class Learner(Protocol):
    """Turns demonstrations and scored groups into new weights."""

    async def start_stage(self, stage: str) -> None: ...
    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport: ...
    async def train_step(self, batch: Sequence[BatchGroup], learning_rate: float) -> StepReport: ...
    async def sync_weights(self, version: int) -> SyncReport: ...
    async def save(self, directory: Path) -> None: ...
    async def load(self, directory: Path) -> None: ...
    async def export(self, directory: Path) -> None: ...
