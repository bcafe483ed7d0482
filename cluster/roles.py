"""What the loop needs of the other processes: `processes/` does it with Ray actors, the tests with plain objects."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from actors.rollout import Sampling
from cluster.group import ScoredGroup
from curriculum.digest import Digests
from curriculum.errors import RunFailed
from curriculum.leases import LeaseCounts
from curriculum.metric import Metric
from curriculum.shared_folder import SharedFolder
from curriculum.task import Demonstration, Task, TaskOutcome
from curriculum.transition import CurriculumReport, PhaseState
from learner.reports import SftReport, StepReport
from reward.circuit import JudgeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One weight update, received by every engine."""

    version: int
    num_tensors: int
    num_bytes: Annotated[int, Metric("sync/bytes", "bytes")]
    """Size of the update; like all metrics of a weight update, absent in a step that sent none."""
    num_engines: int
    seconds: float
    """From the call to the last receipt: `gather_s` + `deliver_s`."""
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
    """Mean difference between the log-probabilities of an engine and of the learner over the same 64 tokens, or between
    those of 32 tokens that an engine samples and the same tokens as a prompt; the largest of the engines, only where it
    was measured (`rollout.sync.probe_every`).

    About 1e-6 in fp32, 0.01 in bf16; the run stops above what rounding explains at the spread of the logits."""


class GroupLost(RunFailed):
    """A group disappeared before it was scored, for example because the node that held it died."""

    def __init__(self, lease_id: int, task_id: str, reason: str) -> None:
        super().__init__(lease_id, task_id, reason)
        self.lease_id = lease_id
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"group of task {self.task_id} (lease {self.lease_id}) was lost before it was scored: {self.reason}; "
            "remove the cause, then go on with --resume"
        )


class TaskFailed(GroupLost):
    """Engines or judges failed at a task again and again: it goes to quarantine, and the run goes on without it."""

    def __init__(self, lease_id: int, task_id: str, reason: str, actor: str) -> None:
        super().__init__(lease_id, task_id, reason)
        self.args = (lease_id, task_id, reason, actor)
        self.actor = actor


class Curriculum(Protocol):
    """Decides what to train on next: the methods of `Coordinator` that the loop calls, in a process of its own."""

    def open_batch(self, num_tasks: int) -> Awaitable[tuple[int, ...]]:
        """Open leases for a batch of the current step; return their ids."""
        ...

    def open_stream(self, num_tasks: int) -> Awaitable[tuple[int, ...]]:
        """Open leases where groups are sampled without a break; return their ids."""
        ...

    def open_leases(self) -> Awaitable[tuple[int, ...]]:
        """Return the ids of the leases that are not closed, oldest first."""
        ...

    def withdraw(self, lease_ids: Sequence[int]) -> Awaitable[int]:
        """Close leases without an outcome; return how many were open."""
        ...

    def report(self, outcomes: Sequence[TaskOutcome]) -> Awaitable[tuple[int, ...]]:
        """Close leases by their outcomes; return the ids of those that counted."""
        ...

    def finish_step(self, step: int, *, num_trained_groups: int) -> Awaitable[CurriculumReport]:
        """Close a step; return what it came to, with the transition if it ended its phase."""
        ...

    def phase_state(self) -> Awaitable[PhaseState]:
        """Return the running phase and its progress."""
        ...

    def record_measured(self, task_ids: Sequence[str], accuracies: Mapping[str, float]) -> Awaitable[None]:
        """Record the mean accuracies of tasks of which a group was sampled to measure them."""
        ...

    def lease_counts(self) -> Awaitable[LeaseCounts]:
        """Return the totals of all leases of the run."""
        ...

    def state_dict(self) -> Awaitable[dict[str, Any]]:
        """Return the state as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Awaitable[None]:
        """Restore what `state_dict` gave."""
        ...

    def keep(self, answered: tuple[int, str], /) -> Awaitable[bool]:
        """Keep the lease of an answered (lease id, task id) open; return false for a duplicate.

        Many calls become one `Coordinator.keep_all`.
        """
        ...


class Rollouts(Protocol):
    """Samples and scores groups."""

    @property
    def num_slots(self) -> int:
        """Groups that the live engines are expected to hold at a time."""
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
        """Abort every answer in every engine; calls of `next_group` return None, and their leases stay held."""
        ...

    @property
    def object_store_bytes(self) -> Annotated[int, Metric("rollout/object_store_bytes", "bytes")]:
        """Bytes in Ray's object stores on all nodes when the step ends.

        They hold the task table, the groups of the step and of the buffer, and the latest weights.
        Level over a run. Growing: something keeps references. Close to `cluster.object_store_bytes`: Ray begins to
        spill to disk.
        """
        ...

    async def next_group(self, sampling: Sampling) -> ScoredGroup | None:
        """Answer and score the next leased task; return None when the coordinator has no lease.

        Raises:
            GroupLost: the group disappeared before it was scored.
            TaskFailed: engines or judges failed at the task again and again.
        """
        ...

    async def answer(self, tasks: Sequence[Task], sampling: Sampling) -> list[ScoredGroup]:
        """Answer given tasks outside the curriculum; return the groups of those that did not fail, in order."""
        ...

    async def judge_events(self) -> list[JudgeEvent]:
        """Return the changes of the judges' circuit breakers since the last call."""
        ...


class Learner(Protocol):
    """Turns demonstrations and scored groups into new weights.

    A batch is trained on by `accumulate` for each of its slices, in order, then `update`.
    """

    async def start_stage(self, stage: str) -> None:
        """Start with a fresh optimizer; `stage` is `sft` or `rl`."""
        ...

    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport:
        """Train on one batch of the warm-up; return its report."""
        ...

    async def accumulate(self, groups: Sequence[ScoredGroup], *, batch_groups: int) -> None:
        """Accumulate the gradients of the next groups; `batch_groups` is the number of groups of a whole batch."""
        ...

    async def update(self, learning_rate: float) -> StepReport:
        """Make the optimizer updates of the batch that was accumulated; return its report."""
        ...

    async def preview(self) -> StepReport:
        """Return what is known of the accumulated groups before the first update: `KNOWN_BEFORE_UPDATE`."""
        ...

    async def drop(self) -> None:
        """Forget the groups that were accumulated; no update is made."""
        ...

    async def save(self, place: SharedFolder) -> Digests:
        """Write a checkpoint; return size and digest of every file that a rank wrote."""
        ...

    async def discard(self, place: SharedFolder) -> None:
        """Remove what the ranks have written of a checkpoint that is none."""
        ...

    async def load(self, place: SharedFolder) -> None:
        """Load a checkpoint."""
        ...
