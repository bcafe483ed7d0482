"""What the loop needs of the other processes; `processes/` fulfils it with Ray actors, the tests with plain objects."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from actors.rollout import Sampling
from cluster.group import ScoredGroup
from curriculum.errors import RunFailed
from curriculum.leases import LeaseCounts
from curriculum.metric import Metric
from curriculum.task import Demonstration, Task, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState, StepSummary
from learner.reports import SftReport, StepReport
from reward.circuit import JudgeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update, received by every engine."""

    version: int
    num_tensors: int
    num_bytes: Annotated[int, Metric("sync/bytes", "bytes")]
    """Size of the update; absent where nothing was sent, like all numbers of a weight update below."""
    num_engines: int
    seconds: float
    """From the call to the last receipt; below, what it was spent on."""
    num_travelling_bytes: Annotated[int, Metric("sync/travelling_bytes", "bytes")]
    """What was sent to hosts without the learner's first rank, each of which gets it once.

    0 on one host; with `rollout.sync.delta` compare with `sync/bytes`."""
    gather_s: Annotated[float, Metric("time/sync_gather_s", "s")]
    """From the call until the learner's ranks were free: waiting for engines that are still restarting, gathering,
    writing or broadcasting, scoring the probe where it was due."""
    deliver_s: Annotated[float, Metric("time/sync_deliver_s", "s")]
    """From the end of the gathering to the last engine's receipt; the learner is free."""
    pause_s: Annotated[float, Metric("time/sync_pause_s", "s")]
    """The longest that an engine sampled nothing.

    Close to `time/sync_deliver_s` on one host."""
    probe_gap_max: Annotated[float | None, Metric("sync/probe_gap_max", "nats")]
    """Mean difference between the log-probabilities of an engine and of the learner over the same 64 tokens, the
    largest of the engines; only where it was measured (`rollout.sync.probe_every`).

    About 1e-6 in fp32, 0.01 in bf16; above 1e-3 or 0.1 the run stops."""


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
    """Decides what to train on next: the methods of `Coordinator` that the loop calls, in a process of its own."""

    def open_batch(self, num_tasks: int) -> Awaitable[tuple[int, ...]]: ...
    def open_stream(self, num_tasks: int) -> Awaitable[tuple[int, ...]]: ...
    def open_leases(self) -> Awaitable[tuple[int, ...]]: ...
    def withdraw(self, lease_ids: Sequence[int]) -> Awaitable[int]: ...
    def report(self, outcomes: Sequence[TaskOutcome]) -> Awaitable[tuple[int, ...]]: ...
    def finish_step(self, summary: StepSummary) -> Awaitable[CurriculumReport]: ...
    def phase_state(self) -> Awaitable[PhaseState]: ...
    def lease_counts(self) -> Awaitable[LeaseCounts]: ...
    def state_dict(self) -> Awaitable[dict[str, Any]]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Awaitable[None]: ...

    def keep(self, answered: tuple[int, str], /) -> Awaitable[bool]:
        """Keep the lease of an answered (lease id, task id) open; false for a duplicate. See `Coordinator.keep_all`."""
        ...


class Rollouts(Protocol):
    """Samples and scores groups."""

    @property
    def num_slots(self) -> int:
        """Groups that the living engines are expected to hold at a time."""
        ...

    @property
    def num_late(self) -> Annotated[int, Metric("rollout/late_groups", "count")]:
        """Groups that missed the deadline and were sampled again, since the start of the process.

        Growing step by step: the deadline is too short or an engine is slow; `events.jsonl` names it.
        """
        ...

    @property
    def num_faulty(self) -> Annotated[int, Metric("rollout/faulty_groups", "count")]:
        """Groups in which an engine returned something that must not be trained on, since the start of the process.

        0. Otherwise the `fault` events name the kind and the engine.
        """
        ...

    async def abort(self) -> None:
        """Ends every answer in every engine; calls of `next_group` return None, and their leases stay held."""
        ...

    @property
    def object_store_bytes(self) -> Annotated[int, Metric("rollout/object_store_bytes", "bytes")]:
        """What Ray's object stores hold on all nodes when the step ends: the task table, the groups of the step and of
        the buffer, the latest weights.

        Level over a run. Growing: something keeps references. Close to `cluster.object_store_bytes`: Ray begins to
        spill to disk.
        """
        ...

    async def next_group(self, sampling: Sampling) -> ScoredGroup | None:
        """Answers and scores the next leased task; None when the coordinator has none to give.

        Raises:
            GroupLost: its group disappeared on the way.
        """
        ...

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[ScoredGroup]:
        """Answers given tasks outside the curriculum, in their order."""
        ...

    async def judge_events(self) -> list[JudgeEvent]:
        """What the circuit breakers of the judges did since the last call."""
        ...


class Learner(Protocol):
    """Turns demonstrations and scored groups into new weights.

    A batch is trained on by `accumulate` for each of its slices, in order, then `update`.
    """

    async def start_stage(self, stage: str) -> None: ...
    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport: ...
    async def accumulate(self, groups: Sequence[ScoredGroup], *, batch_groups: int) -> None: ...
    async def update(self, learning_rate: float) -> StepReport: ...
    async def save(self, directory: Path) -> None: ...
    async def load(self, directory: Path) -> None: ...
    async def export(self, directory: Path) -> None: ...
