"""What can be wrong with the answers of an engine, as errors that can be pickled on their way to the driver."""

from __future__ import annotations

from enum import StrEnum

MAX_REGENERATIONS = 3
"""Times that a group is sampled again after a fault; after one more its task goes to quarantine."""
MAX_REPEATED_ERRORS = 1
"""The same after an error that an engine raised, which more attempts rarely change."""


class EngineDied(RuntimeError):
    """The process of an engine is gone; nothing that was asked of it will be answered."""


class FaultKind(StrEnum):
    """Kind of a fault in the answers of an engine."""

    MISSING_SAMPLES = "missing_samples"
    """Fewer answers than requested."""
    MISSING_LOGPROBS = "missing_logprobs"
    """The number of log-probabilities differs from that of tokens."""
    EMPTY_ANSWER = "empty_answer"
    """An answer that ended by itself without a token."""
    UNKNOWN_FINISH = "unknown_finish"
    """An unknown finish reason."""
    UNREADABLE_VERSION = "unreadable_version"
    """Tokens without a policy version, a version that is no number, or spans of versions that do not fit the tokens."""
    FUTURE_VERSION = "future_version"
    """Tokens of a policy version that this engine has not received."""
    ENGINE_ERROR = "engine_error"
    """No answers: the engine raised an error, for example because it cannot take the prompt."""


class FaultyGroup(RuntimeError):
    """An engine returned something that must not be trained on; the group is sampled again."""

    def __init__(
        self, kind: FaultKind, detail: str, lease_id: int, task_id: str, engine: str, num_requeues: int
    ) -> None:
        """Take a description of the fault, and where it happened.

        Args:
            kind: of the fault.
            detail: the fault in words, for messages.
            lease_id: lease of the group.
            task_id: task of the group.
            engine: name of the rollout actor.
            num_requeues: times that the lease was requeued before.
        """
        super().__init__(kind, detail, lease_id, task_id, engine, num_requeues)
        self.kind = kind
        self.detail = detail
        self.lease_id = lease_id
        self.task_id = task_id
        self.engine = engine
        self.num_requeues = num_requeues

    @property
    def is_final(self) -> bool:
        """Whether the lease was requeued too often to be sampled again."""
        is_error = self.kind is FaultKind.ENGINE_ERROR
        return self.num_requeues >= (MAX_REPEATED_ERRORS if is_error else MAX_REGENERATIONS)

    def __str__(self) -> str:
        end = "given up" if self.is_final else "sampled again"
        return f"task {self.task_id} (lease {self.lease_id}): {self.engine} {self.detail} ({self.kind}); it is {end}"


class DeadlineMissed(RuntimeError):
    """Answers of a group missed `rollout.deadline_s`; its lease was requeued."""

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
