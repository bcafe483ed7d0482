"""What can be wrong with the answers of an engine, as errors that survive the way from the actor to the driver."""

from __future__ import annotations

from enum import StrEnum

MAX_REGENERATIONS = 3
"""Times that a group is sampled again after a fault; a lease that fails once more is given up."""


class FaultKind(StrEnum):
    """What an engine got wrong."""

    MISSING_SAMPLES = "missing_samples"
    """Fewer answers than asked for."""
    MISSING_LOGPROBS = "missing_logprobs"
    """Not one log-probability per token."""
    EMPTY_ANSWER = "empty_answer"
    """An answer that ended by itself without a token."""
    UNKNOWN_FINISH = "unknown_finish"
    """A finish reason that this project does not know."""
    UNREADABLE_VERSION = "unreadable_version"
    """Tokens without a policy version, or with one that is no number or does not fit the tokens."""
    FUTURE_VERSION = "future_version"
    """Tokens of weights that this engine has not been sent."""


class FaultyGroup(RuntimeError):
    """An engine answered with something that must not be trained on; the group is sampled again."""

    def __init__(
        self, kind: FaultKind, detail: str, lease_id: int, task_id: str, engine: str, num_requeues: int
    ) -> None:
        """Takes what is wrong, in words, and how often the lease has come back before."""
        super().__init__(kind, detail, lease_id, task_id, engine, num_requeues)
        self.kind = kind
        self.detail = detail
        self.lease_id = lease_id
        self.task_id = task_id
        self.engine = engine
        self.num_requeues = num_requeues

    @property
    def is_final(self) -> bool:
        """Whether the lease has come back too often to be handed out again."""
        return self.num_requeues >= MAX_REGENERATIONS

    def __str__(self) -> str:
        end = "given up" if self.is_final else "sampled again"
        return f"task {self.task_id} (lease {self.lease_id}): {self.engine} {self.detail} ({self.kind}); it is {end}"


class DeadlineMissed(RuntimeError):
    """Answers of a group ran past `rollout.deadline_s`; its lease has been requeued."""

    kind = "deadline"
    detail = "missed rollout.deadline_s"
    is_final = False

    def __init__(self, lease_id: int, task_id: str, engine: str) -> None:
        super().__init__(lease_id, task_id, engine)
        self.lease_id = lease_id
        self.task_id = task_id
        self.engine = engine

    def __str__(self) -> str:
        return f"task {self.task_id} (lease {self.lease_id}): {self.engine} {self.detail}; it is requeued"
