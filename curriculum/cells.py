"""Checked cells of a raw row: texts, ids, answers and messages, or a `RowError` that names the column."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from curriculum.errors import described
from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row

Message = dict[str, str]


def row_id(row: Row) -> str | None:
    """Return the id of a row as text; None where it has none."""
    value = row.values.get("id")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with a gap is read as floats
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError(RejectReason.WRONG_TYPE, f"id is {described(value)}, expected text or an integer")
    return _encodable(str(value).strip(), "id")


def present(row: Row, column: str) -> Any:
    """Return the value of a column, whatever its type; raise `RowError` where there is none."""
    value = row.values.get(column)
    if value is None:
        raise RowError(RejectReason.MISSING_COLUMN, f"{column} is missing")
    return value


def text_of(row: Row, column: str) -> str:
    """Return the text of a column; raise `RowError` where it is blank or cannot be encoded."""
    return _checked_text(present(row, column), column)


def _checked_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(RejectReason.WRONG_TYPE, f"{column} is {described(value)}, expected text")
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
    """Return what `answers` holds (a list, a JSON list or one text); where it is empty, what `answer` holds."""
    answers = _decoded_list(row.values.get("answers"))
    has_answers = answers is not None and len(_as_list(answers)) > 0
    if not has_answers and row.values.get("answer") is not None:
        return accepted_answers(row.values["answer"], "answer")
    return accepted_answers(_decoded_list(present(row, "answers")), "answers")


def accepted_answers(value: Any, column: str) -> tuple[str, ...]:
    """Return the distinct non-empty answers, in order; numbers become text, and a JSON list of texts its entries.

    An entry that is null is none.
    """
    parts = [part for part in _as_list(value) if part is not None]
    answers = dict.fromkeys(_answer_text(entry, column) for part in parts for entry in texts_in_json(part) or [part])
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
    return list(cast("list[Any] | tuple[Any, ...]", value)) if isinstance(value, list | tuple) else [value]


def _decoded_list(value: Any) -> Any:
    """Parse a text that is a JSON list; return every other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        parsed = decoded(value)
        return cast("list[Any]", parsed) if isinstance(parsed, list) else value
    return value


def texts_in_json(value: Any) -> list[str] | None:
    """Return the entries of a text that is a JSON list of texts; None for everything else.

    A list of numbers stays the text that it is: it may be an interval.
    """
    parsed = _decoded_list(value) if isinstance(value, str) else value
    if not isinstance(value, str) or not isinstance(parsed, list):
        return None
    entries: list[Any] = [entry for entry in cast("list[Any]", parsed) if entry is not None]
    return entries if entries and all(isinstance(entry, str) for entry in entries) else None


def decoded(value: Any) -> Any:
    """Parse a text that is JSON; return everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def messages_of(row: Row, column: str) -> tuple[Message, ...]:
    """Return the messages `{role, content}` of a column: a list, a JSON list, or one text from the user."""
    value = _decoded_list(present(row, column))
    if isinstance(value, str):
        return ({"role": "user", "content": _checked_text(value, column)},)
    messages = _as_list(value)
    if not messages:
        raise RowError(RejectReason.EMPTY, f"{column} has no message")
    return tuple(_message(message, column) for message in messages)


def _message(value: Any, column: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(RejectReason.WRONG_TYPE, f"{column} holds {described(value)}, expected {{role, content}}")
    fields = cast("Mapping[Any, Any]", value)
    return {name: _message_field(fields.get(name), f"{column}.{name}") for name in ("role", "content")}


def _message_field(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(RejectReason.WRONG_TYPE, f"{column} is missing or not text")
    return _encodable(value, column)
