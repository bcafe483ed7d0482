"""The record that this stage hands on: the score of one response, and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Verdict of a judge on one pair of answers."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    """The judge failed, or said nothing that can be read as exactly one verdict; it is never taken for a no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one response."""

    answer: str | None
    """The final answer that was compared, markdown and quotes stripped; None where the response gives none."""
    rule: float
    """Verdict of the rule: 1.0 accepted, 0.0 rejected."""
    judge: Verdict | None
    """Verdict of the judge; None where the judge was not asked."""
    accuracy: float | None
    """max(rule, judge) in {0.0, 1.0} (paper Eq. 14), before any shaping; None where it is unknown.
    Dynamic sampling and difficulty use it."""
    reward: float | None
    """Accuracy plus the overlong penalty (paper Eq. 7), in [-1, 1]; None where accuracy is unknown.
    The advantage uses it."""
    reason: str
    """One short line that a person reads: which rule or judge decided, or why the score is unknown."""

    def __post_init__(self) -> None:
        if self.rule not in (0.0, 1.0):
            raise ValueError(f"rule={self.rule} is not a rule verdict; it must be 0.0 or 1.0")
        if self.accuracy not in (None, 0.0, 1.0):
            raise ValueError(f"accuracy={self.accuracy} is not an accuracy; it must be 0.0, 1.0 or None")
        if (self.accuracy is None) != (self.reward is None):
            raise ValueError(f"accuracy={self.accuracy} and reward={self.reward} must be known or unknown together")
