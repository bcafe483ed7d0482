"""The judge for the scorer: one interface for all back ends, and a cache that abstains where the judge fails."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from reward.judge_prompt import JudgeQuestion
from reward.score import Verdict

logger = logging.getLogger(__name__)

DEFAULT_CACHE_SIZE = 100_000


class Judge(Protocol):
    """Any back end that compares answers."""

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question, in their order; `unknown` where there is none.

        It may raise any exception; the cache then abstains.
        """
        ...


class CachingJudge:
    """A judge behind a cache, which is asked each different question once.

    Verdicts are kept by (judge, question, answer, truth), the least recently used are dropped first. Identical
    questions that wait at the same time share one call. A judge that fails yields `unknown`, which is never kept, so
    the question is asked again the next time.

    Consumes questions of any number of concurrent groups; waits for the judge, at most `timeout_s`; unblocked by the
    batch that owns the question.
    """

    def __init__(
        self, judge: Judge, *, name: str, timeout_s: float | None = None, max_cached: int = DEFAULT_CACHE_SIZE
    ) -> None:
        self._judge = judge
        self._name = name
        self._timeout_s = timeout_s
        self._max_cached = max_cached
        self._verdicts: OrderedDict[tuple[str, JudgeQuestion], Verdict] = OrderedDict()
        self._in_flight: dict[JudgeQuestion, asyncio.Future[Verdict]] = {}

    async def ask(self, questions: Sequence[JudgeQuestion]) -> dict[JudgeQuestion, Verdict]:
        """Return the verdict of every different question; new ones go to the judge in one batch."""
        known = {question: verdict for question in questions if (verdict := self._recall(question)) is not None}
        waiting = {q: self._in_flight[q] for q in questions if q not in known and q in self._in_flight}
        new = [q for q in dict.fromkeys(questions) if q not in known and q not in waiting]
        known |= await self._ask_new(new)
        for question, verdict in waiting.items():
            known[question] = await asyncio.shield(verdict)
        return known

    async def _ask_new(self, questions: list[JudgeQuestion]) -> dict[JudgeQuestion, Verdict]:
        if not questions:
            return {}
        loop = asyncio.get_running_loop()
        promises = {question: loop.create_future() for question in questions}
        self._in_flight |= promises
        verdicts = [Verdict.UNKNOWN] * len(questions)
        try:
            verdicts = await self._call_judge(questions)
        finally:
            for (question, promise), verdict in zip(promises.items(), verdicts, strict=True):
                del self._in_flight[question]
                promise.set_result(verdict)
        self._keep(questions, verdicts)
        return dict(zip(questions, verdicts, strict=True))

    async def _call_judge(self, questions: list[JudgeQuestion]) -> list[Verdict]:
        """Ask the judge; the one place that tolerates a failing judge: it logs and abstains."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return _checked(await self._judge.judge(questions), len(questions))
        except Exception as error:
            logger.warning("judge %s failed on %d questions: %r", self._name, len(questions), error)
            return [Verdict.UNKNOWN] * len(questions)

    def _recall(self, question: JudgeQuestion) -> Verdict | None:
        verdict = self._verdicts.get((self._name, question))
        if verdict is not None:
            self._verdicts.move_to_end((self._name, question))
        return verdict

    def _keep(self, questions: list[JudgeQuestion], verdicts: list[Verdict]) -> None:
        for question, verdict in zip(questions, verdicts, strict=True):
            if verdict is not Verdict.UNKNOWN:
                self._verdicts[self._name, question] = verdict
        while len(self._verdicts) > self._max_cached:
            self._verdicts.popitem(last=False)


def combined_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine the verdicts over several accepted answers: yes if any is yes, no only if every one is no."""
    if Verdict.YES in verdicts:
        return Verdict.YES
    return Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts or not verdicts else Verdict.NO


def _checked(verdicts: Sequence[Verdict], num_questions: int) -> list[Verdict]:
    if len(verdicts) != num_questions:
        raise ValueError(f"the judge returned {len(verdicts)} verdicts for {num_questions} questions")
    return [Verdict(verdict) for verdict in verdicts]
