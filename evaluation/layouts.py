"""Layouts of published benchmarks: how the columns of a raw row become a question about a document.

LongBench has `{input, context, answers, dataset, _id}`, DocMath-Eval `{question_id, paragraphs, question,
ground_truth}`, Frames `{Prompt, Answer, context}`. Frames is published with links instead of documents, so its rows
need a `context` column that someone filled with the linked pages.
"""

from __future__ import annotations

from typing import Any, cast

from curriculum.cells import accepted_answers, answers_of, present, row_id, text_of
from curriculum.layout import QUESTION_LAYOUTS, Layout, QuestionItem, derived_id
from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row


def parse_longbench(row: Row) -> QuestionItem:
    """Read `{input, context, answers, dataset, _id}`."""
    context, question = text_of(row, "context"), text_of(row, "input").strip()
    return QuestionItem(
        item_id=_id_of(row, "_id") or derived_id(context, question),
        data_source=text_of(row, "dataset"),
        context=context,
        question=question,
        answers=answers_of(row),
    )


def parse_docmath(row: Row) -> QuestionItem:
    """Read `{question_id, paragraphs, question, ground_truth}`; paragraphs and tables are joined by line breaks."""
    context, question = _paragraphs(row), text_of(row, "question").strip()
    return QuestionItem(
        item_id=_id_of(row, "question_id") or derived_id(context, question),
        data_source="docmath",
        context=context,
        question=question,
        answers=_docmath_answers(row),
    )


def parse_frames(row: Row) -> QuestionItem:
    """Read `{Prompt, Answer, context}`."""
    context, question = text_of(row, "context"), text_of(row, "Prompt").strip()
    return QuestionItem(
        item_id=row_id(row) or derived_id(context, question),
        data_source="frames",
        context=context,
        question=question,
        answers=accepted_answers(present(row, "Answer"), "Answer"),
    )


BENCHMARK_LAYOUTS = (
    *QUESTION_LAYOUTS,
    Layout(columns=(("input",), ("context",), ("answers",), ("dataset",)), parse=parse_longbench),
    Layout(columns=(("question",), ("paragraphs",), ("ground_truth",)), parse=parse_docmath),
    Layout(columns=(("Prompt",), ("Answer",), ("context",)), parse=parse_frames),
)
"""Our own schema and DocQA-RL first, then the published ones."""


def _id_of(row: Row, column: str) -> str | None:
    return row_id(Row(number=row.number, values={"id": row.values.get(column)}))


def _paragraphs(row: Row) -> str:
    value = present(row, "paragraphs")
    paragraphs: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [None]
    if not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise RowError(
            RejectReason.WRONG_TYPE, "paragraphs is not a list of texts; give one text per paragraph or table"
        )
    return text_of(Row(number=row.number, values={"paragraphs": "\n".join(paragraphs)}), "paragraphs")


def _docmath_answers(row: Row) -> tuple[str, ...]:
    """Return the ground truth, a number; published rows also hold true or false."""
    truth = present(row, "ground_truth")
    return accepted_answers(str(truth) if isinstance(truth, bool) else truth, "ground_truth")
