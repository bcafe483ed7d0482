"""How far a judge can be trusted: its errors against labels, its silence, and where it contradicts the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reward.answer import accepted_answers
from reward.hybrid import judge_questions
from reward.judge import CachingJudge, Judge, combined_verdict
from reward.judge_prompt import JudgeQuestion, imitates_judge_format
from reward.kind import kind_of
from reward.rules import strict_match
from reward.score import Verdict
from reward.score_rows import text_in, truths_in
from reward.wrapping import clean_answer

QUESTIONS_AT_ONCE = 256
"""Questions that wait for the judge at a time: each one has a deadline, and must not spend it in a queue."""
_LABELS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """An answer, the accepted answers, and whether they are known to mean the same."""

    question: str
    prediction: str
    truths: tuple[str, ...]
    data_source: str
    label: bool | None
    """True: equivalent; None where nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair with what the rule and the judge make of it."""

    pair: AnswerPair
    rule: bool
    verdict: Verdict | None
    """None where the judge was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """What one decider said, and how often it was wrong."""

    num_asked: int
    num_yes: int
    num_no: int
    num_unknown: int
    unknown_rate: float | None
    """Share of unknown among what was asked; None where nothing was."""
    num_different: int
    """Pairs asked about that are labelled as different."""
    false_positive_rate: float | None
    """Share of yes among them, an unknown counting as no error; None where there is none."""
    num_equivalent: int
    """Pairs asked about that are labelled as equivalent."""
    false_negative_rate: float | None
    """Share of no among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """The calibration of a judge."""

    judge: str
    num_pairs: int
    num_labelled: int
    rule_rates: ErrorRates
    judge_rates: ErrorRates
    hybrid_rates: ErrorRates
    """Rule or judge, as the reward takes them."""
    num_judge_alone_accepts: int
    """The judge says yes and the rule no: what the judge is there for, and where it may be fooled."""
    num_judge_alone_rejects: int
    """The judge says no to an exact match; training never asks it there."""
    disagreements: tuple[JudgedPair, ...]
    """Examples of both, those that contradict a label first."""


def read_labelled_pair(values: Mapping[str, Any]) -> AnswerPair:
    """A row `{question?, prediction, ground_truth or ground_truths, label, data_source?}`.

    Raises:
        ValueError: a key is missing or holds something else; the message names it.
    """
    several = "ground_truth" not in values and "ground_truths" in values
    return AnswerPair(
        question="" if values.get("question") is None else text_in(values, "question"),
        prediction=text_in(values, "prediction"),
        truths=accepted_answers(truths_in(values, "ground_truths" if several else "ground_truth")),
        data_source="" if values.get("data_source") is None else text_in(values, "data_source"),
        label=_label(values.get("label")),
    )


async def judge_pairs(pairs: Sequence[AnswerPair], judge: Judge | None, *, name: str) -> list[JudgedPair]:
    """Asks the judge about every pair, also about those that the rule accepts; forgeries are never shown to it."""
    asked = [[] if judge is None else _questions(pair) for pair in pairs]
    questions = [question for questions in asked for question in questions]
    verdicts: dict[JudgeQuestion, Verdict] = {}
    if judge is not None:
        desk = CachingJudge(judge, name=name)
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            verdicts |= await desk.ask(questions[start : start + QUESTIONS_AT_ONCE])
    return [
        JudgedPair(
            pair=pair,
            rule=rule_accepts(pair),
            verdict=combined_verdict([verdicts[question] for question in questions]) if questions else None,
        )
        for pair, questions in zip(pairs, asked, strict=True)
    ]


def rule_accepts(pair: AnswerPair) -> bool:
    """What the strict rule says."""
    return strict_match(kind_of(pair.data_source), clean_answer(pair.prediction), pair.truths)


def exact_and_mismatched(pairs: Iterable[AnswerPair]) -> list[AnswerPair]:
    """Labelled pairs out of unlabelled ones, for measuring a judge on the answers of a run.

    An exact match is equivalent. The same answer beside the truth of another question of its data source, where the
    rule tells them apart, is different.
    """
    exact = list(dict.fromkeys(pair for pair in pairs if rule_accepts(pair)))
    sources: dict[str, dict[tuple[str, ...], None]] = {}
    for pair in exact:
        sources.setdefault(pair.data_source, {})[pair.truths] = None
    equivalent = [replace(pair, label=True) for pair in exact]
    different = [_mismatched(pair, sources[pair.data_source]) for pair in exact]
    return [*equivalent, *(pair for pair in different if pair is not None)]


def judge_report(judged: Sequence[JudgedPair], *, judge: str, max_examples: int) -> JudgeReport:
    """Counts and rates over judged pairs, with at most `max_examples` disagreements."""
    disagreements = [item for item in judged if item.verdict in _DECIDED and item.rule is not _DECIDED[item.verdict]]
    disagreements.sort(key=lambda item: item.pair.label in (None, _DECIDED.get(item.verdict)))
    accepts = sum(item.verdict is Verdict.YES for item in disagreements)
    labels = [item.pair.label for item in judged]
    asked = [(item.verdict, item.pair.label) for item in judged if item.verdict is not None]
    return JudgeReport(
        judge=judge,
        num_pairs=len(judged),
        num_labelled=sum(label is not None for label in labels),
        rule_rates=error_rates([(_verdict_of(item.rule), item.pair.label) for item in judged]),
        judge_rates=error_rates(asked),
        hybrid_rates=error_rates([(_hybrid(item), item.pair.label) for item in judged]),
        num_judge_alone_accepts=accepts,
        num_judge_alone_rejects=len(disagreements) - accepts,
        disagreements=tuple(disagreements[:max_examples]),
    )


def error_rates(decisions: Sequence[tuple[Verdict, bool | None]]) -> ErrorRates:
    """Rates over (verdict, label) pairs."""
    verdicts = [verdict for verdict, _ in decisions]
    on_different = [verdict for verdict, label in decisions if label is False]
    on_equivalent = [verdict for verdict, label in decisions if label is True]
    return ErrorRates(
        num_asked=len(verdicts),
        num_yes=verdicts.count(Verdict.YES),
        num_no=verdicts.count(Verdict.NO),
        num_unknown=verdicts.count(Verdict.UNKNOWN),
        unknown_rate=_share(verdicts, Verdict.UNKNOWN),
        num_different=len(on_different),
        false_positive_rate=_share(on_different, Verdict.YES),
        num_equivalent=len(on_equivalent),
        false_negative_rate=_share(on_equivalent, Verdict.NO),
    )


_DECIDED: Mapping[Verdict | None, bool] = {Verdict.YES: True, Verdict.NO: False}


def _questions(pair: AnswerPair) -> list[JudgeQuestion]:
    answer = clean_answer(pair.prediction)
    return judge_questions(pair.question, answer, pair.truths) if answer and not imitates_judge_format(answer) else []


def _hybrid(item: JudgedPair) -> Verdict:
    return Verdict.YES if item.rule else item.verdict or Verdict.NO


def _verdict_of(accepted: bool) -> Verdict:
    return Verdict.YES if accepted else Verdict.NO


def _share(verdicts: Sequence[Verdict], verdict: Verdict) -> float | None:
    return verdicts.count(verdict) / len(verdicts) if verdicts else None


def _mismatched(pair: AnswerPair, truths: Iterable[tuple[str, ...]]) -> AnswerPair | None:
    """The pair beside the first truths that the rule tells apart from its answer."""
    pairs = (replace(pair, truths=other, label=False) for other in truths)
    return next((other for other in pairs if not rule_accepts(other)), None)


def _label(value: object) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    known = _LABELS.get(value.strip().casefold()) if isinstance(value, str) else None
    if known is None:
        raise ValueError(f"label={value!r:.80} is none; give true (equivalent) or false (different)")
    return known
