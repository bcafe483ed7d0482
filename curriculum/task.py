"""Records of the curriculum: a task, its lease, its outcome, and a demonstration for the warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One question about one document, ready for the engine."""

    task_id: str
    """Unique in the run."""
    data_source: str
    """Name of the data set; decides which rule scores the answer."""
    question: str
    answers: tuple[str, ...]
    """Accepted answers; at least one."""
    prompt_ids: NDArray[np.int32]
    """[P] token ids of the whole chat prompt, document included."""
    phase: int
    """Index of the phase with L_{k-1} < P <= L_k."""

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError(f"task {self.task_id}: no accepted answer; give `answers` at least one entry")
        if self.prompt_ids.ndim != 1 or self.prompt_ids.size == 0:
            raise ValueError(f"task {self.task_id}: prompt_ids has shape {self.prompt_ids.shape}, expected [P], P > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """What the coordinator knows of a task: enough to choose it, nothing of its text."""

    task_id: str
    phase: int
    """Index of the phase with L_{k-1} < `prompt_tokens` <= L_k."""
    prompt_tokens: int
    data_source: str
    """Name of the data set; fresh tasks may be drawn with equal shares of each."""

    @classmethod
    def of(cls, task: Task) -> Self:
        """Describe a task."""
        return cls(
            task_id=task.task_id,
            phase=task.phase,
            prompt_tokens=int(task.prompt_ids.size),
            data_source=task.data_source,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskLease:
    """The right to sample one group for a task; ends with an outcome, a release or a timeout.

    It only names the task: the holder looks the task up in its `TaskTable`.
    """

    lease_id: int
    """Ordinal of the lease in the run; orders the groups of a batch whatever their timing."""
    task_id: str
    attempt: int
    """Number of earlier leases of this task in the run; part of the sampling seed. A lease that is handed out again
    keeps it, so that its samples are the same."""
    replayed: bool
    """True if the task comes from the retrospective pool."""
    phase: int
    """Index of the running phase, which is later than that of the task for a replayed one."""
    num_requeues: int = 0
    """Times that a holder gave the lease back unanswered: it took too long, or the engine gave an invalid answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """What is reported to the curriculum about a sampled group, trained on or not."""

    lease_id: int
    task_id: str
    accuracies: tuple[float, ...]
    """Known accuracies in [0, 1] of the samples, before length shaping; unknown ones are left out."""
    num_samples: int
    """Samples of the group, known or not; 0 if it was lost."""
    quarantined: bool = False
    """True if there are no samples because the task failed again and again; it is not handed out any more."""

    def __post_init__(self) -> None:
        if any(not 0.0 <= accuracy <= 1.0 for accuracy in self.accuracies):
            raise ValueError(f"task {self.task_id}: accuracies={self.accuracies} leave [0, 1]; report them unshaped")
        if len(self.accuracies) > self.num_samples:
            raise ValueError(f"task {self.task_id}: {len(self.accuracies)} accuracies of {self.num_samples} samples")

    @property
    def mean_accuracy(self) -> float | None:
        """Mean of the known accuracies; None unless at least half of the samples have one.

        Which rewards are unknown is no accident: a judge that is away leaves those that the rule accepts.
        """
        if not self.accuracies or 2 * len(self.accuracies) < self.num_samples:
            return None
        return fsum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration:
    """A prompt with a verified response, for the warm-up."""

    demonstration_id: str
    prompt_ids: NDArray[np.int32]
    """[P] token ids of the chat prompt."""
    response_ids: NDArray[np.int32]
    """[R] token ids of the response, end-of-turn token included."""

    def __post_init__(self) -> None:
        if self.prompt_ids.size == 0 or self.response_ids.size == 0:
            raise ValueError(f"demonstration {self.demonstration_id}: empty prompt or response; remove the row")
