"""Rules: the verdict on a response that needs no model, from its accepted answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reward.answer import accepted_answers, extract_answer
from reward.choice import choices_match
from reward.config import RuleSet
from reward.kind import AnswerKind
from reward.numeric import numbers_match
from reward.released import released_answer, released_match, released_truth
from reward.text_rule import texts_match
from reward.wrapping import bare_value

RULES_VERSION = 1
"""Raised whenever a rule decides an answer otherwise; stored scores of another version are made again."""


def _texts_match(answer: str, truth: str) -> bool:
    """Compare with and without the brackets around the whole answer: some belong to a truth."""
    return texts_match(answer, truth) or texts_match(bare_value(answer), truth)


_MATCHES: dict[AnswerKind, Callable[[str, str], bool]] = {
    AnswerKind.TEXT: _texts_match,
    AnswerKind.NUMERIC: numbers_match,
    AnswerKind.CHOICE: choices_match,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOutcome:
    """Verdict of the rule on one response."""

    answer: str | None
    """The answer that was read; None where the response gives none."""
    accepted: bool
    truths: tuple[str, ...]
    """The truths with which a judge is to compare a rejected answer; empty where the judge must not be asked."""
    reason: str


def apply_rules(
    rules: RuleSet,
    kind: AnswerKind,
    response: str,
    ground_truth: Sequence[str],
    *,
    thinking_required: bool = False,
    tags: tuple[str, str] | None = None,
) -> RuleOutcome:
    """Extract the answer of a response and compare it with every accepted answer of its kind.

    `ground_truth` holds the accepted answers, each bare or a sentence "Therefore, the answer is X".

    Raises:
        ValueError: where the ground truth holds no answer.
    """
    if rules is RuleSet.RELEASED:
        return _apply_released(kind, response, tuple(ground_truth))
    answers = _accepted_answers(tuple(ground_truth))
    answer = extract_answer(response, thinking_required=thinking_required, tags=tags)
    if answer is None:
        return RuleOutcome(answer=None, accepted=False, truths=(), reason="no answer found")
    accepted = strict_match(kind, answer, answers)
    reason = f"{kind} {'equals' if accepted else 'differs from'} the truth"
    return RuleOutcome(answer=answer, accepted=accepted, truths=() if accepted else answers, reason=reason)


_accepted_answers = lru_cache(maxsize=1024)(accepted_answers)


def strict_match(kind: AnswerKind, answer: str, answers: Sequence[str]) -> bool:
    """Return whether an extracted answer equals one of the accepted answers under the strict rule of its kind."""
    return any(_MATCHES[kind](answer, truth) for truth in answers)


def _apply_released(kind: AnswerKind, response: str, answers: Sequence[str]) -> RuleOutcome:
    """Apply the released rules, which never ask a judge about a choice."""
    answer = released_answer(kind, response)
    if answer is None:
        return RuleOutcome(answer=None, accepted=False, truths=(), reason="released: no answer found")
    accepted = any(released_match(kind, answer, truth) for truth in answers)
    is_judged = not accepted and kind is not AnswerKind.CHOICE
    truths = tuple(filter(None, (released_truth(kind, truth) for truth in answers))) if is_judged else ()
    reason = f"released: {kind} {'accepted' if accepted else 'rejected'}"
    return RuleOutcome(answer=answer, accepted=accepted, truths=truths, reason=reason)
