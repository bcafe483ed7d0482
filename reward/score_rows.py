"""Rows of `qwenlong score`: reading, checking, scoring, and the row that is written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from reward.answer import accepted_answers
from reward.hybrid import HybridScorer
from reward.score import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One response with its question and its accepted answers."""

    id: str | int
    data_source: str
    """Decides the kind of the answer."""
    question: str
    """For the judge; "" where the row has none."""
    response: str
    ground_truth: tuple[str, ...]
    """Accepted answers, bare or as sentences."""


def read_score_row(values: Mapping[str, Any]) -> ScoreRow:
    """Read a row `{id, data_source, question?, response, ground_truth}`; other keys are ignored.

    Raises:
        ValueError: a key is missing or holds something else; the message names it.
    """
    row_id = values.get("id")
    if not isinstance(row_id, str | int) or isinstance(row_id, bool):
        raise ValueError(f"id={row_id!r:.80} is not an id; give a string or an integer")
    return ScoreRow(
        id=row_id,
        data_source=text_in(values, "data_source"),
        question="" if values.get("question") is None else text_in(values, "question"),
        response=text_in(values, "response"),
        ground_truth=truths_in(values, "ground_truth"),
    )


def text_in(values: Mapping[str, Any], key: str) -> str:
    """Return the text under a key.

    Raises:
        ValueError: there is none.
    """
    text = values.get(key)
    if not isinstance(text, str):
        raise ValueError(f"{key} is missing" if text is None else f"{key}={text!r:.80} is not text; give a string")
    return text


def truths_in(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the accepted answers under a key: one or a list, each a string or a number, as they were written.

    Raises:
        ValueError: there is none.
    """
    truth = values.get(key)
    if truth is None:
        raise ValueError(f"{key} is missing")
    accepted_answers(truth)  # refuses what holds no answer
    truths = cast("list[Any]", truth) if isinstance(truth, list) else [truth]
    return tuple(str(each) for each in truths)


async def score_rows(scorer: HybridScorer, rows: Sequence[ScoreRow]) -> list[Score]:
    """Return one score per row, in their order; the judge is asked about all rows at once."""
    groups = await asyncio.gather(
        *[
            scorer.score_group(
                data_source=row.data_source,
                question=row.question,
                answers=row.ground_truth,
                responses=[row.response],
                num_tokens=[0],
            )
            for row in rows
        ]
    )
    return [score for (score,) in groups]


def scored_row(row: ScoreRow, score: Score) -> dict[str, Any]:
    """Return what is written for a row; `judge` is null where it was not asked, `score` where it is unknown."""
    return {
        "id": row.id,
        "answer": score.answer,
        "rule": score.rule,
        "judge": None if score.judge is None else str(score.judge),
        "score": score.accuracy,
        "reason": score.reason,
    }
