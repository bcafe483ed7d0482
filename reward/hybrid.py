"""Hybrid reward: the rule decides at once, and only what it rejects goes to the judge (paper Eq. 12 to 14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward.config import NoJudge, RewardConfig
from reward.judge import CachingJudge, Judge, combined_verdict
from reward.judge_prompt import JudgeQuestion, imitates_judge_format
from reward.kind import kind_of
from reward.overlong import overlong_penalty
from reward.rules import RuleOutcome, apply_rules
from reward.score import Score, Verdict
from reward.text_rule import text_key

TRUTHS_AT_ONCE = 8
"""Accepted answers that the judge compares with one rejected answer at a time; without a yes the next ones follow."""
BATCH_GRACE_S = 5.0
"""A judge keeps its deadline itself, question by question; a whole batch is ended only this much later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringReport:
    """Counts of the scorer since the start."""

    num_responses: int = 0
    num_rule_accepted: int = 0
    num_judge_accepted: int = 0
    """Rejected by the rule, accepted by the judge."""
    num_unknown: int = 0
    """Responses whose accuracy is unknown because the judge abstained."""


class HybridScorer:
    """A scorer of groups of responses: max(rule, judge), or unknown where the judge abstains."""

    def __init__(self, config: RewardConfig, judge: Judge | None = None) -> None:
        """Take the judge; it is None where `config.judge.type` is "none" or only the rule is to score."""
        self._config = config
        self._judge = None if judge is None else _caching(config, judge)
        self._report = ScoringReport()

    async def score_group(
        self,
        *,
        data_source: str,
        question: str,
        answers: Sequence[str],
        responses: Sequence[str],
        num_tokens: Sequence[int],
        max_response_tokens: int | None = None,
    ) -> list[Score]:
        """Return one score per response, in their order; all questions go to the judge in one batch.

        `answers` are the accepted answers, bare or as sentences "Therefore, the answer is X"; `num_tokens` are the
        lengths of the responses in tokens. `max_response_tokens` is the limit under which they were sampled: L_max of
        Eq. 7 where the recipe names none; without both, as where only accuracies matter, rewards are accuracies.

        Raises:
            ValueError: where the lengths do not fit the responses or no answer is given.
        """
        if len(num_tokens) != len(responses) or not answers:
            raise ValueError(
                f"{len(responses)} responses, {len(num_tokens)} lengths and {len(answers)} accepted answers; "
                "give one length per response and at least one answer"
            )
        outcomes = [self._apply_rules(data_source, response, answers) for response in responses]
        asked = [self._questions(question, outcome) for outcome in outcomes]
        judged = await self._judged(asked)
        scores = [
            _score(outcome, verdict, self._penalty(length, max_response_tokens))
            for outcome, verdict, length in zip(outcomes, judged, num_tokens, strict=True)
        ]
        self._count(scores)
        return scores

    @property
    def report(self) -> ScoringReport:
        """Counts since the start, the judge's included."""
        return self._report

    def _apply_rules(self, data_source: str, response: str, answers: Sequence[str]) -> RuleOutcome:
        kind = kind_of(data_source, self._config.kinds)
        return apply_rules(
            self._config.rules,
            kind,
            response,
            answers,
            thinking_required=self._config.thinking == "required",
            tags=self._config.thinking_tags,
        )

    def _penalty(self, num_tokens: int, max_response_tokens: int | None) -> float:
        overlong = self._config.overlong
        max_tokens = None if overlong is None else overlong.max_tokens or max_response_tokens
        if overlong is None or max_tokens is None:
            return 0.0
        return overlong_penalty(num_tokens, max_tokens=max_tokens, cache_tokens=overlong.cache_tokens)

    def _questions(self, question: str, outcome: RuleOutcome) -> list[JudgeQuestion]:
        if self._judge is None or not outcome.answer or _is_forged(outcome):
            return []
        return judge_questions(question, outcome.answer, outcome.truths)

    async def _judged(self, asked: Sequence[list[JudgeQuestion]]) -> list[Verdict | None]:
        """Return one verdict per response over all of its questions; None where it has none."""
        return await judged_in_parts(asked, self._judge) if self._judge is not None else [None] * len(asked)

    def _count(self, scores: Sequence[Score]) -> None:
        before = self._report
        self._report = ScoringReport(
            num_responses=before.num_responses + len(scores),
            num_rule_accepted=before.num_rule_accepted + sum(score.rule == 1.0 for score in scores),
            num_judge_accepted=before.num_judge_accepted + sum(score.judge is Verdict.YES for score in scores),
            num_unknown=before.num_unknown + sum(score.accuracy is None for score in scores),
        )


def judge_questions(question: str, answer: str, truths: Sequence[str]) -> list[JudgeQuestion]:
    """Return one question per accepted answer of a different normal form."""
    distinct = {text_key(truth).words or truth: truth for truth in reversed(truths)}
    return [JudgeQuestion(question=question, answer=answer, truth=truth) for truth in reversed(distinct.values())]


async def judged_in_parts(asked: Sequence[Sequence[JudgeQuestion]], judge: CachingJudge) -> list[Verdict | None]:
    """Ask the questions of every answer, `TRUTHS_AT_ONCE` of each at a time, until one is yes or none is left.

    Returns:
        the combined verdict of each answer; None for one without a question.
    """
    verdicts: list[list[Verdict]] = [[] for _ in asked]
    for start in range(0, max((len(questions) for questions in asked), default=0), TRUTHS_AT_ONCE):
        parts = [
            questions[start : start + TRUTHS_AT_ONCE] if Verdict.YES not in known else ()
            for questions, known in zip(asked, verdicts, strict=True)
        ]
        found = await judge.ask([question for part in parts for question in part])
        for known, part in zip(verdicts, parts, strict=True):
            known += [found[question] for question in part]
    return [combined_verdict(known) if known else None for known in verdicts]


def _caching(config: RewardConfig, judge: Judge) -> CachingJudge:
    timeout_s = None if isinstance(config.judge, NoJudge) else config.judge.deadline_s + BATCH_GRACE_S
    return CachingJudge(judge, name=config.judge.name, timeout_s=timeout_s)


def _is_forged(outcome: RuleOutcome) -> bool:
    return not outcome.accepted and outcome.answer is not None and imitates_judge_format(outcome.answer)


def _score(outcome: RuleOutcome, verdict: Verdict | None, penalty: float) -> Score:
    accuracy = _accuracy(outcome, verdict)
    return Score(
        answer=outcome.answer,
        rule=float(outcome.accepted),
        judge=verdict,
        accuracy=accuracy,
        reward=None if accuracy is None else accuracy + penalty,
        reason=_reason(outcome, verdict),
    )


def _accuracy(outcome: RuleOutcome, verdict: Verdict | None) -> float | None:
    """Return max(rule, judge); None only where the rule rejects and the judge was asked and abstained."""
    if outcome.accepted or verdict is Verdict.YES:
        return 1.0
    return None if verdict is Verdict.UNKNOWN else 0.0


def _reason(outcome: RuleOutcome, verdict: Verdict | None) -> str:
    if verdict is not None:
        return f"{outcome.reason}; judge: {verdict}"
    if _is_forged(outcome):
        return f"{outcome.reason}; imitates the judge's format, so the judge is not asked"
    return outcome.reason
