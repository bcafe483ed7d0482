"""Records of the rollout: one sampled answer and the group of answers to one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class FinishReason(StrEnum):
    """Why the engine stopped an answer."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One sampled answer; its text is decoded where it is read, from `response_ids`."""

    response_ids: NDArray[np.int32]
    """[R] sampled token ids, end-of-turn token included when the answer ended by itself."""
    rollout_logprobs: NDArray[np.float32]
    """[R] log-probability (nats) of each token under the policy that sampled it, after temperature and top-p."""
    finish_reason: FinishReason
    policy_version: int
    """Number of weight updates behind the policy that sampled the answer."""

    def __post_init__(self) -> None:
        if self.response_ids.size == 0:
            raise ValueError("a trajectory needs at least one response token; the engine returned none")
        if self.response_ids.shape != self.rollout_logprobs.shape:
            raise ValueError(
                f"{self.response_ids.size} response tokens but {self.rollout_logprobs.size} log-probabilities; "
                "ask the engine for the log-probability of every sampled token"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """G answers to one prompt; the unit that is scored, trained on and shared in the object store."""

    lease_id: int
    """Ordinal of the lease that the group answers."""
    task_id: str
    data_source: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers."""
    prompt_ids: NDArray[np.int32]
    """[P] token ids of the prompt, once for the whole group."""
    trajectories: tuple[Trajectory, ...]
    """The G answers, in sample order."""
    phase: int
    """Index of the phase that asked for the group."""
    replayed: bool
    """True if the task came from the retrospective pool."""
    temperature: float
    """Sampling temperature; the learner divides its logits by the same number."""
    engine: str
    """Name of the rollout actor, for logs."""
    top_p: float = 1.0
    """Nucleus that the answers were drawn from; `rollout_logprobs` are those of the distribution cut to it."""

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"group of task {self.task_id} has no trajectory; the engine returned no sample")

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays: what the group takes in the object store, but for some hundred bytes."""
        answers = sum(t.response_ids.nbytes + t.rollout_logprobs.nbytes for t in self.trajectories)
        return self.prompt_ids.nbytes + answers


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMeta:
    """What the driver knows of a group without holding its tokens."""

    lease_id: int
    task_id: str
    phase: int
    replayed: bool
    prompt_tokens: int
    response_tokens: tuple[int, ...]
    """[G] tokens of each answer."""
    num_truncated: int
    """Answers that ran into the response limit."""
    policy_version: int
    """Oldest policy version among the answers."""
    engine: str
    num_bytes: int
    """Bytes of the tokens and log-probabilities in the object store."""
    seconds: float
    """From the lease to the last token."""
    data_source: str = ""
    """Kind of task, for advantages that are scaled by task."""

    @classmethod
    def of(cls, group: Group, seconds: float) -> GroupMeta:
        """Describes a group."""
        return cls(
            lease_id=group.lease_id,
            task_id=group.task_id,
            phase=group.phase,
            replayed=group.replayed,
            prompt_tokens=len(group.prompt_ids),
            response_tokens=tuple(len(trajectory.response_ids) for trajectory in group.trajectories),
            num_truncated=sum(t.finish_reason is FinishReason.LENGTH for t in group.trajectories),
            policy_version=min(trajectory.policy_version for trajectory in group.trajectories),
            engine=group.engine,
            num_bytes=group.num_bytes,
            seconds=seconds,
            data_source=group.data_source,
        )
