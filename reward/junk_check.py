"""The check at start-up: a run must not start with rewards that pay for junk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curriculum.errors import UserError
from reward.hybrid import HybridScorer
from reward.score import Score

GIBBERISH_CHARS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JunkCheckQuestion:
    """A question whose truth is none of the junk answers."""

    data_source: str
    question: str
    answers: tuple[str, ...]
    candidates: str
    """A list of candidates that contains the truth: naming several answers must not pay either."""


JUNK_CHECK_QUESTIONS = (
    JunkCheckQuestion(
        data_source="musique",
        question="In which city was the agreement between the two companies signed?",
        answers=("Vienna",),
        candidates="Vienna or London or Rome",
    ),
    JunkCheckQuestion(
        data_source="docmath",
        question="By how many million dollars did the revenue of the 2 segments differ in 2019?",
        answers=("37.5",),
        candidates="12.1, 37.5, 40 or 81",
    ),
    JunkCheckQuestion(
        data_source="long_toc_choices",
        question="Who pays for the repairs?\nA. The owner\nB. The city\nC. The tenant\nD. The insurer",
        answers=("C",),
        candidates="A or B or C or D",
    ),
)


async def check_for_junk(
    scorer: HybridScorer, questions: Sequence[JunkCheckQuestion] = JUNK_CHECK_QUESTIONS
) -> list[Score]:
    """Score junk answers to every question; refuse rewards that pay for one of them.

    The junk: nothing, "a", "?", the candidate list, "YES", "[[YES]]", the question itself, 10K characters of
    gibberish; each as the answer of a well-formed response and as a response by itself. A score may be unknown:
    it is masked in training and pays nothing.

    Returns:
        The scores of all junk answers.

    Raises:
        UserError: where junk scores above 0, or the judge was asked and never gave a verdict.
    """
    scored = [pair for question in questions for pair in await _score_junk(scorer, question)]
    paid = [(junk, score) for junk, score in scored if score.accuracy == 1.0]
    if paid:
        junk, score = paid[0]
        raise UserError(
            f"the rewards pay 1.0 for the junk answer {junk!r:.60} ({score.reason}) and for {len(paid) - 1} more; "
            "use reward.rules=strict and a judge that rejects junk (reward.judge)"
        )
    judged = [score for _, score in scored if score.judge is not None]
    if judged and all(score.accuracy is None for score in judged):
        raise UserError(
            f"the judge gave no verdict on any of {len(judged)} junk answers; check that it is up and follows its "
            "format (reward.judge), or set reward.judge.type=none"
        )
    return [score for _, score in scored]


async def _score_junk(scorer: HybridScorer, question: JunkCheckQuestion) -> list[tuple[str, Score]]:
    junk_answers = list(_junk_answers(question))
    scores = await scorer.score_group(
        data_source=question.data_source,
        question=question.question,
        answers=question.answers,
        responses=[response for _, response in junk_answers],
        num_tokens=[0] * len(junk_answers),
    )
    return [(junk, score) for (junk, _), score in zip(junk_answers, scores, strict=True)]


def _junk_answers(question: JunkCheckQuestion) -> Iterator[tuple[str, str]]:
    """Yield (junk answer, response) pairs."""
    junk_answers = ("", "a", "?", question.candidates, "YES", "[[YES]]", question.question, _gibberish())
    for junk in junk_answers:
        yield junk, f"<think>\n</think>\n\nTherefore, the answer is {junk}"
        yield junk, f"<think>\n</think>\n\nThe correct answer is {junk}"
        yield junk, junk


def _gibberish() -> str:
    letters = random.Random(0)
    return "".join(letters.choices("abcdefghijklmnopqrstuvwxyz      .,", k=GIBBERISH_CHARS))
