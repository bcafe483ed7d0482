"""Records of the rollout: one sampled answer and the group of answers to one prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Task, TaskLease


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it."""
    LENGTH = "length"
    """It reached the response limit or the context length of the engine."""
    REPETITION = "repetition"
    """It reached the limit while it repeated itself."""
    DEADLINE = "deadline"
    """It was cut because its group took too long."""

    @property
    def is_cut(self) -> bool:
        """Whether the system ended the answer before the model did, so that its reward is unknown."""
        return self is FinishReason.DEADLINE

    @property
    def is_truncated(self) -> bool:
        """Whether the answer reached the response limit, repeating itself or not."""
        return self in (FinishReason.LENGTH, FinishReason.REPETITION)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Consecutive tokens that one policy sampled, up to the start of the next span or the end of the answer."""

    start: int
    """Index of the first token in the answer."""
    version: int
    """Version of the policy, in weight updates."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One sampled answer; its text is decoded from `response_ids` where it is needed."""

    response_ids: NDArray[np.int32]
    """[R] sampled token ids, end-of-turn token included when the answer ended by itself."""
    rollout_logprobs: NDArray[np.float32]
    """[R] log-probability (nats) of each token under the policy that sampled it, after temperature and top-p."""
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    """Which policy sampled which tokens: spans in order, the first one starts at 0. An answer that was cut before its
    first token has one span, of the policy at its start."""

    def __post_init__(self) -> None:
        if self.response_ids.size == 0 and not self.finish_reason.is_cut:
            raise ValueError("a trajectory needs at least one response token; the engine returned none")
        if self.response_ids.shape != self.rollout_logprobs.shape:
            raise ValueError(
                f"{self.response_ids.size} response tokens but {self.rollout_logprobs.size} log-probabilities; "
                "ask the engine for the log-probability of every sampled token"
            )
        starts = [span.start for span in self.versions]
        if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= max(1, self.response_ids.size):
            raise ValueError(
                f"spans of policy versions start at {starts} in an answer of {self.response_ids.size} tokens; they "
                "must start at 0 and grow"
            )

    @property
    def policy_version(self) -> int:
        """Oldest policy that sampled any of the tokens."""
        return min(span.version for span in self.versions)

    @property
    def newest_policy_version(self) -> int:
        """Newest policy that sampled any of the tokens; larger than the oldest if weights changed meanwhile."""
        return max(span.version for span in self.versions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """G answers to one prompt; the unit that is scored, trained on and shared in the object store."""

    task: Task
    """The task that was answered; holds the prompt, once for the whole group."""
    lease: TaskLease
    """The lease under which the group was sampled."""
    trajectories: tuple[Trajectory, ...]
    """The G answers, in sample order."""
    temperature: float
    """Sampling temperature; the learner divides its logits by the same number."""
    max_response_tokens: int
    """Limit of an answer, in tokens, under which the group was sampled."""
    engine: str
    """Name of the rollout actor, for logs."""
    top_p: float = 1.0
    """Nucleus that the answers were drawn from; `rollout_logprobs` are those of the distribution restricted to it."""

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"group of task {self.task.task_id} has no trajectory; the engine returned no sample")

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays; in the object store the group takes some hundred bytes more."""
        answers = sum(t.response_ids.nbytes + t.rollout_logprobs.nbytes for t in self.trajectories)
        return self.task.prompt_ids.nbytes + answers


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMeta:
    """What the driver knows of a group without holding its tokens."""

    lease: TaskLease
    data_source: str
    """Data source of the task; advantages may be scaled by it."""
    prompt_tokens: int
    response_tokens: tuple[int, ...]
    """[G] tokens of each answer."""
    truncated: tuple[bool, ...]
    """[G] whether each answer reached the response limit, repeating itself or not."""
    num_repetitive: int = 0
    """Answers that reached the response limit while they repeated themselves."""
    num_cut: int = 0
    """Answers that were cut by the deadline."""
    policy_version: int
    """Oldest policy version among the answers."""
    num_bytes: int
    """Bytes of the tokens and log-probabilities in the object store."""

    @property
    def num_truncated(self) -> int:
        """Answers that reached the response limit."""
        return sum(self.truncated)

    @classmethod
    def of(cls, group: Group) -> GroupMeta:
        """Describe a group."""
        reasons = Counter(trajectory.finish_reason for trajectory in group.trajectories)
        return cls(
            lease=group.lease,
            data_source=group.task.data_source,
            prompt_tokens=len(group.task.prompt_ids),
            response_tokens=tuple(len(trajectory.response_ids) for trajectory in group.trajectories),
            truncated=tuple(trajectory.finish_reason.is_truncated for trajectory in group.trajectories),
            num_repetitive=reasons[FinishReason.REPETITION],
            num_cut=sum(number for reason, number in reasons.items() if reason.is_cut),
            policy_version=min(trajectory.policy_version for trajectory in group.trajectories),
            num_bytes=group.num_bytes,
        )
