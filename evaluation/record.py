"""Records of the evaluation: a benchmark item, an answer to it, its score, and its reasoning behaviours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from evaluation.behaviours import BehaviourCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark about one document, in text."""

    benchmark: str
    item_id: str
    """Unique in its benchmark."""
    data_source: str
    """Decides which rule scores the answer."""
    context: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers; at least one."""

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the item in a whole evaluation."""
        return self.benchmark, self.item_id


class Outcome(StrEnum):
    """How the generation of an answer ended."""

    COMPLETE = "complete"
    """The model ended its answer itself."""
    TRUNCATED = "truncated"
    """The answer ran into the limit of output tokens; it is scored as it is."""
    FAILED = "failed"
    """There is no answer; it counts as wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample of one item: one line of the store."""

    benchmark: str
    item_id: str
    sample: int
    """Index of the sample of this item, from 0."""
    seed: int
    """Sampling seed of this sample."""
    outcome: Outcome
    text: str
    """The response, thinking included; "" where the generation failed."""
    prompt_tokens: int
    """Tokens of the prompt, after truncation; 0 where there is none."""
    document_cut: bool
    """Whether the middle of the document was cut out to fit the limit."""
    response_tokens: int
    error: str | None = None
    """Why there is no answer; None where there is one."""

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.FAILED) != (self.error is not None):
            raise ValueError(
                f"answer {self.benchmark}/{self.item_id}/{self.sample}: outcome={self.outcome} with error="
                f"{self.error!r}; exactly the failed ones have an error"
            )
        if not (0 <= self.prompt_tokens < 2**53 and 0 <= self.response_tokens < 2**53):
            raise ValueError(f"answer {self.benchmark}/{self.item_id}/{self.sample}: its numbers of tokens are none")

    @property
    def item_key(self) -> tuple[str, str]:
        """Key of the item that the answer belongs to."""
        return self.benchmark, self.item_id

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity of the answer in the store."""
        return self.benchmark, self.item_id, self.sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """The score of one answer: one line of the scores."""

    benchmark: str
    item_id: str
    sample: int
    scorer: str
    """Fingerprint of rules and judge; a score counts only for the scorer that gave it."""
    response: str
    """Fingerprint of the response that was scored."""
    accuracy: float | None
    """1.0 right, 0.0 wrong, None unknown."""
    answer: str | None
    """The final answer that was compared; None where the response gives none."""
    rule: float
    judge: str | None
    """Verdict of the judge; None where it was not asked."""
    reason: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Key of the answer that was scored."""
        return self.benchmark, self.item_id, self.sample


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedAnswer:
    """The behaviours that the judge's model counted in one answer: one line of the counts."""

    benchmark: str
    item_id: str
    sample: int
    counter: str
    """Name of the judge."""
    response: str
    """Fingerprint of the response that was read."""
    counts: BehaviourCounts | None
    """None where the judge's model gave none that can be read."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Key of the answer that was read."""
        return self.benchmark, self.item_id, self.sample
