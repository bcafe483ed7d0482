"""What the loop needs of the other processes; `handles.py` fulfils it with Ray actors, the tests with plain objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from actors.rollout import Sampling
from cluster.group import BatchGroup
from curriculum.errors import RunFailed
from curriculum.leases import LeaseCounts
from curriculum.task import Demonstration, Task, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary
from learner.batch.microbatch import SftReport, StepReport
from learner.weights.published import PublishedWeights
from reward.circuit import JudgeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update, received by every engine."""

    version: int
    num_tensors: int
    num_bytes: int
    num_engines: int
    seconds: float
    """From the first gathered byte to the last receipt; below, what it was spent on."""
    gather_s: float
    """The learner's ranks were busy: gathering, writing, scoring the probe where it was due."""
    deliver_s: float
    """Engines loaded and answered; the learner was free."""
    pause_s: float
    """The longest that an engine sampled nothing."""
    probe_gap_max: float | None
    """Largest mean difference (nats) of an engine to the learner over the probe; None where it was not asked."""
    num_travelling_bytes: int
    """Sent to other hosts, each of which gets it once; 0 if all engines are on the learner's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCounts:
    """Groups that had to be sampled again, since the start of this process."""

    num_late: int = 0
    """They missed `rollout.deadline_s`."""
    num_faulty: int = 0
    """The engine answered with something that must not be trained on."""

    def plus(self, *, faulty: bool) -> Self:
        """One more of either kind."""
        return replace(self, num_faulty=self.num_faulty + faulty, num_late=self.num_late + (not faulty))


class GroupLost(RunFailed):
    """A group disappeared before it was scored: the node that held it died, say."""

    def __init__(self, lease_id: int, task_id: str, reason: str) -> None:
        super().__init__(lease_id, task_id, reason)
        self.lease_id = lease_id
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"group of task {self.task_id} (lease {self.lease_id}) was lost before it was scored: {self.reason}; put "
            "the cause right, then go on with --resume"
        )


class Curriculum(Protocol):
    """Decides what to train on next."""

    async def open_batch(self, num_tasks: int) -> tuple[int, ...]: ...
    async def open_stream(self, num_tasks: int) -> tuple[int, ...]: ...
    async def open_leases(self) -> tuple[int, ...]: ...
    async def keep(self, answered: Sequence[tuple[int, str]]) -> tuple[int, ...]: ...
    async def withdraw(self, lease_ids: Sequence[int]) -> int: ...
    async def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]: ...
    async def finish_step(self, summary: StepSummary) -> CurriculumReport: ...
    async def phase_state(self) -> PhaseState: ...
    async def lease_counts(self) -> LeaseCounts: ...
    async def state_dict(self) -> dict[str, Any]: ...
    async def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Rollouts(Protocol):
    """Samples and scores groups."""

    @property
    def num_slots(self) -> int:
        """Groups that the living engines are expected to hold at a time."""
        ...

    @property
    def counts(self) -> RolloutCounts:
        """What had to be sampled again so far."""
        ...

    async def abort(self) -> None:
        """Ends every answer in every engine; calls of `next_group` return None, and their leases stay held."""
        ...

    @property
    def object_store_bytes(self) -> int:
        """What the object stores of all nodes hold."""
        ...

    async def next_group(self, sampling: Sampling) -> BatchGroup | None:
        """Answers and scores the next leased task; None when the coordinator has none to give.

        Raises:
            GroupLost: its group disappeared on the way.
        """
        ...

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[BatchGroup]:
        """Answers given tasks outside the curriculum, in their order."""
        ...

    async def judge_events(self) -> list[JudgeEvent]:
        """What the circuit breakers of the judges did since the last call."""
        ...


class Learner(Protocol):
    """Turns demonstrations and scored groups into new weights.

    A batch is trained on by `accumulate` for each of its slices, in order, then `update`. Weights are sent by
    `publish_weights`, which occupies the learner, then `deliver`, which does not.
    """

    async def start_stage(self, stage: str) -> None: ...
    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport: ...
    async def accumulate(self, groups: Sequence[BatchGroup], *, batch_groups: int) -> None: ...
    async def update(self, learning_rate: float) -> StepReport: ...
    async def publish_weights(self, version: int) -> PublishedWeights: ...
    async def deliver(self, weights: PublishedWeights) -> SyncReport: ...
    async def save(self, directory: Path) -> None: ...
    async def load(self, directory: Path) -> None: ...
    async def export(self, directory: Path) -> None: ...
