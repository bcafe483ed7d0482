"""The reliability of a judge: its errors against labels, its unknown verdicts, and where it contradicts the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reward.answer import accepted_answers
from reward.hybrid import judge_questions
from reward.judge import CachingJudge, Judge, combined_verdict
from reward.judge_prompt import JudgeQuestion, imitates_judge_format
from reward.kind import AnswerKind, kind_of
from reward.rules import strict_match
from reward.score import Verdict
from reward.score_rows import text_in, truths_in
from reward.wrapping import clean_answer

QUESTIONS_AT_ONCE = 256
"""Questions that the judge is asked at a time: each one has a deadline, which must not pass in a queue."""
_LABELS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """An answer with the accepted answers, whether they mean the same, and the judge's verdict."""

    question: str
    prediction: str
    truths: tuple[str, ...]
    data_source: str
    label: bool | None
    """True: equivalent; None where it is not known."""
    verdict: Verdict | None = None
    """None where the judge was not asked."""
    kind: AnswerKind = AnswerKind.TEXT
    recorded: bool | None = None
    """Whether the rule of the run accepted the answer; None for a pair that comes from no run."""
    today: bool | None = None
    """Whether today's rule accepts the response that the answer was read from; None without that response."""

    @property
    def rule(self) -> bool:
        """Whether the rule accepts the answer: as the run recorded it, else the strict rule of its kind."""
        if self.recorded is not None:
            return self.recorded
        return strict_match(self.kind, clean_answer(self.prediction), self.truths)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """Decisions of the rule, the judge, or both, and how often they were wrong."""

    num_asked: int
    num_yes: int
    num_no: int
    num_unknown: int
    unknown_rate: float | None
    """Share of unknown among the pairs asked about; None without any."""
    num_different: int
    """Pairs asked about that are labelled as different."""
    false_positive_rate: float | None
    """Share of yes among the different pairs, an unknown counting as no error; None without any."""
    num_equivalent: int
    """Pairs asked about that are labelled as equivalent."""
    false_negative_rate: float | None
    """Share of no among the equivalent pairs; None without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """The reliability of a judge."""

    judge: str
    num_pairs: int
    num_labelled: int
    rule_rates: ErrorRates
    judge_rates: ErrorRates
    hybrid_rates: ErrorRates
    """Rule or judge, as the reward combines them."""
    num_judge_alone_accepts: int
    """Pairs with yes from the judge and no from the rule: the gain of the judge, or its errors."""
    num_judge_alone_rejects: int
    """Exact matches with no from the judge; training does not ask the judge about these."""
    disagreements: tuple[AnswerPair, ...]
    """Examples of both, those that contradict a label first."""
    num_today_accepts: int
    """Answers of a run that its rule rejected and today's accepts."""
    num_today_rejects: int
    """Answers of a run that its rule accepted and today's rejects."""
    rule_changes: tuple[AnswerPair, ...]
    """Examples of both."""


def read_labelled_pair(values: Mapping[str, Any], kinds: Mapping[str, AnswerKind] | None = None) -> AnswerPair:
    """Read a row `{question?, prediction, ground_truth or ground_truths, label, data_source?}`.

    Args:
        values: the row.
        kinds: kinds of answers by data source, where the name alone would decide otherwise.

    Raises:
        ValueError: a key is missing or holds something else; the message names it.
    """
    several = "ground_truth" not in values and "ground_truths" in values
    data_source = "" if values.get("data_source") is None else text_in(values, "data_source")
    return AnswerPair(
        question="" if values.get("question") is None else text_in(values, "question"),
        prediction=text_in(values, "prediction"),
        truths=accepted_answers(truths_in(values, "ground_truths" if several else "ground_truth")),
        data_source=data_source,
        kind=kind_of(data_source, kinds),
        label=_label(values.get("label")),
    )


async def judge_pairs(pairs: Sequence[AnswerPair], judge: Judge | None, *, name: str) -> list[AnswerPair]:
    """Ask the judge about every pair, also those that the rule accepts, except forged verdicts; return the verdicts."""
    asked = [[] if judge is None else _questions(pair) for pair in pairs]
    questions = [question for questions in asked for question in questions]
    verdicts: dict[JudgeQuestion, Verdict] = {}
    if judge is not None:
        cached = CachingJudge(judge, name=name)
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            verdicts |= await cached.ask(questions[start : start + QUESTIONS_AT_ONCE])
    return [
        replace(pair, verdict=combined_verdict([verdicts[question] for question in questions]) if questions else None)
        for pair, questions in zip(pairs, asked, strict=True)
    ]


def exact_and_mismatched(pairs: Iterable[AnswerPair]) -> list[AnswerPair]:
    """Make labelled pairs, without verdicts, out of the answers of a run, to measure a judge on them.

    An exact match is equivalent. The same answer with the truth of another question of its data source, where the
    rule rejects it, is different.
    """
    measured = (replace(pair, verdict=None, recorded=None, today=None) for pair in pairs)
    exact = list(dict.fromkeys(pair for pair in measured if pair.rule))
    sources: dict[str, dict[tuple[str, ...], None]] = {}
    for pair in exact:
        sources.setdefault(pair.data_source, {})[pair.truths] = None
    equivalent = [replace(pair, label=True) for pair in exact]
    different = [_mismatched(pair, sources[pair.data_source]) for pair in exact]
    return [*equivalent, *(pair for pair in different if pair is not None)]


def judge_report(judged: Sequence[AnswerPair], *, judge: str, max_examples: int) -> JudgeReport:
    """Count judged pairs and compute rates over them, with at most `max_examples` disagreements."""
    disagreements = [pair for pair in judged if pair.verdict in _DECIDED and pair.rule is not _DECIDED[pair.verdict]]
    disagreements.sort(key=lambda pair: pair.label in (None, _DECIDED.get(pair.verdict)))
    accepts = sum(pair.verdict is Verdict.YES for pair in disagreements)
    changed = [pair for pair in judged if None not in (pair.today, pair.recorded) and pair.today is not pair.recorded]
    today_accepts = sum(pair.today is True for pair in changed)
    return JudgeReport(
        judge=judge,
        num_pairs=len(judged),
        num_labelled=sum(pair.label is not None for pair in judged),
        rule_rates=error_rates([(Verdict.YES if pair.rule else Verdict.NO, pair.label) for pair in judged]),
        judge_rates=error_rates([(pair.verdict, pair.label) for pair in judged if pair.verdict is not None]),
        hybrid_rates=error_rates([(_hybrid(pair), pair.label) for pair in judged]),
        num_judge_alone_accepts=accepts,
        num_judge_alone_rejects=len(disagreements) - accepts,
        disagreements=tuple(disagreements[:max_examples]),
        num_today_accepts=today_accepts,
        num_today_rejects=len(changed) - today_accepts,
        rule_changes=tuple(changed[:max_examples]),
    )


def error_rates(decisions: Sequence[tuple[Verdict, bool | None]]) -> ErrorRates:
    """Compute the rates over (verdict, label) pairs."""
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


def _hybrid(pair: AnswerPair) -> Verdict:
    return Verdict.YES if pair.rule else pair.verdict or Verdict.NO


def _share(verdicts: Sequence[Verdict], verdict: Verdict) -> float | None:
    return verdicts.count(verdict) / len(verdicts) if verdicts else None


def _mismatched(pair: AnswerPair, truths: Iterable[tuple[str, ...]]) -> AnswerPair | None:
    """Return the pair with the first other truths for which the rule rejects its answer; None without any."""
    pairs = (replace(pair, truths=other, label=False) for other in truths)
    return next((other for other in pairs if not other.rule), None)


def _label(value: object) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    known = _LABELS.get(value.strip().casefold()) if isinstance(value, str) else None
    if known is None:
        raise ValueError(f"label={value!r:.80} is not a label; give true (equivalent) or false (different)")
    return known
