"""Checked cells of a raw row: texts, ids, answers and messages, or a `RowError` that names the column."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row

Message = dict[str, str]


def row_id(row: Row) -> str | None:
    """The id of a row as text; None where it has none."""
    value = row.values.get("id")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError(RejectReason.WRONG_TYPE, f"id is {type(value).__name__}, expected text or an integer")
    return _encodable(str(value).strip(), "id")


def present(row: Row, column: str) -> Any:
    """The value of a column, whatever its type; raises `RowError` where there is none."""
    value = row.values.get(column)
    if value is None:
        raise RowError(RejectReason.MISSING_COLUMN, f"{column} is missing")
    return value


def text_of(row: Row, column: str) -> str:
    """A text that is not blank and can be encoded."""
    return _checked_text(present(row, column), column)


def _checked_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(RejectReason.WRONG_TYPE, f"{column} is {type(value).__name__}, expected text")
    if not value.strip():
        raise RowError(RejectReason.EMPTY, f"{column} is empty")
    return _encodable(value, column)


def _encodable(text: str, column: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{column} holds a lone surrogate at character {error.start}; repair the text"
        raise RowError(RejectReason.NOT_UTF8, detail) from error
    return text


def answers_of(row: Row) -> tuple[str, ...]:
    """`answers`, a list, a JSON list or one text; where it is empty, `answer`."""
    answers = _decoded_list(row.values.get("answers"))
    has_answers = answers is not None and len(_as_list(answers)) > 0
    if not has_answers and row.values.get("answer") is not None:
        return accepted_answers(row.values["answer"], "answer")
    return accepted_answers(_decoded_list(present(row, "answers")), "answers")


def accepted_answers(value: Any, column: str) -> tuple[str, ...]:
    """The distinct non-empty answers, in order; numbers become text."""
    answers = dict.fromkeys(_answer_text(entry, column) for entry in _as_list(value))
    accepted = tuple(_encodable(answer, column) for answer in answers if answer.strip())
    if not accepted:
        raise RowError(RejectReason.EMPTY, f"{column} has no entry")
    return accepted


def _answer_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if is_number and not isinstance(value, bool):
        return str(value)
    raise RowError(RejectReason.WRONG_TYPE, f"{column} holds {value!r:.40}, expected text or a number")


def _as_list(value: Any) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy
    return list(value) if isinstance(value, list | tuple) else [value]


def _decoded_list(value: Any) -> Any:
    """A text that is a JSON list becomes that list; every other value stays as it is."""
    parsed = decoded(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    return parsed if isinstance(parsed, list) else value


def decoded(value: Any) -> Any:
    """A text that is JSON becomes its value; everything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def messages_of(row: Row, column: str) -> tuple[Message, ...]:
    """A list of `{role, content}`, as a list, a JSON list or one plain text."""
    value = _decoded_list(present(row, column))
    if isinstance(value, str):
        return ({"role": "user", "content": _checked_text(value, column)},)
    messages = _as_list(value)
    if not messages:
        raise RowError(RejectReason.EMPTY, f"{column} has no message")
    return tuple(_message(message, column) for message in messages)


def _message(value: Any, column: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(RejectReason.WRONG_TYPE, f"{column} holds {type(value).__name__}, expected {{role, content}}")
    for name in ("role", "content"):
        if not isinstance(value.get(name), str):
            raise RowError(RejectReason.WRONG_TYPE, f"{column}.{name} is missing or not text")
        _encodable(value[name], f"{column}.{name}")
    return {"role": value["role"], "content": value["content"]}
