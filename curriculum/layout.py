"""Layouts of the data: from the columns of a raw row to a question, or to a demonstration.

Questions come as our own `{id, data_source, context, question, answers}` or as published with DocQA-RL-1.6K
(`prompt`, `data_source`, `reward_model.ground_truth`), where the prompt text is already filled into the template.
Demonstrations come as our own columns plus `response`, as `{messages}` whose last message is the response, or as
`{prompt | messages, response}`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionItem:
    """A question about a document, in text."""

    item_id: str
    data_source: str
    context: str
    question: str
    answers: tuple[str, ...]

    @property
    def content(self) -> tuple[str, ...]:
        """What makes two items the same question."""
        return self.context.strip(), self.question.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationItem:
    """A prompt with its response, in text. The prompt is a document and a question, or messages."""

    item_id: str
    context: str | None
    question: str | None
    messages: tuple[Message, ...]
    """Empty where there is a document and a question."""
    response: str

    @property
    def content(self) -> tuple[str, ...]:
        """What makes two items the same demonstration."""
        prompt = json.dumps(self.messages) if self.messages else f"{self.context}\0{self.question}"
        return prompt, self.response.strip()


ItemT = TypeVar("ItemT", QuestionItem, DemonstrationItem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(Generic[ItemT]):
    """A set of columns and how a row of them is read."""

    columns: tuple[tuple[str, ...], ...]
    """Needed columns; each entry lists accepted alternatives."""
    parse: Callable[[Row], ItemT]
    """Raises `RowError`."""

    def fits(self, columns: Sequence[str]) -> bool:
        """True if every needed column is there."""
        return all(any(name in columns for name in names) for names in self.columns)

    def __str__(self) -> str:
        return "{" + ", ".join("|".join(names) for names in self.columns) + "}"


def choose_layout(layouts: Sequence[Layout[ItemT]], columns: Sequence[str], *, name: str) -> Layout[ItemT]:
    """The first layout whose columns are all there.

    Args:
        layouts: Candidates in order of preference.
        columns: Columns of the source.
        name: `key=value` of the source, for the message.

    Raises:
        ValueError: None fits; names the columns found, the ones needed and the nearest of them.
    """
    for layout in layouts:
        if layout.fits(columns):
            return layout
    wanted = " or ".join(str(layout) for layout in layouts)
    found = ", ".join(columns) or "none"
    raise ValueError(f"{name}: no recognised columns; found {found}; need {wanted}{_nearest(layouts, columns)}")


def _nearest(layouts: Sequence[Layout[Any]], columns: Sequence[str]) -> str:
    wanted = {name for layout in layouts for names in layout.columns for name in names} - set(columns)
    pairs = [(column, get_close_matches(column.lower(), wanted, n=1)) for column in columns]
    renames = [f"{column} -> {near[0]}" for column, near in pairs if near]
    return f"; rename {', '.join(renames)}" if renames else ""


def derived_id(*parts: str) -> str:
    """16 hex digits that depend on the content alone."""
    return hashlib.sha1("\0".join(parts).encode(), usedforsecurity=False).hexdigest()[:16]


# ---- questions


def parse_own(row: Row) -> QuestionItem:
    """Read `{id, data_source, context, question, answers | answer}`."""
    context, question = _text(row, "context"), _text(row, "question")
    return QuestionItem(
        item_id=row_id(row) or derived_id(context, question),
        data_source=_text(row, "data_source"),
        context=context,
        question=question.strip(),
        answers=_answers(row),
    )


def parse_published(row: Row) -> QuestionItem:
    """Read a row of DocQA-RL-1.6K. The ground truth may be a sentence ("... the answer is X") and is kept as it is."""
    context, question = split_prompt(_only_user_message(row))
    reward_model = _decoded(_present(row, "reward_model"))
    if not isinstance(reward_model, Mapping) or reward_model.get("ground_truth") is None:
        raise RowError(RejectReason.MISSING_COLUMN, "reward_model has no ground_truth")
    return QuestionItem(
        item_id=row_id(row) or derived_id(context, question),
        data_source=_text(row, "data_source"),
        context=context,
        question=question,
        answers=_accepted(reward_model["ground_truth"], "reward_model.ground_truth"),
    )


def split_prompt(prompt: str) -> tuple[str, str]:
    """Document and question of a prompt that was filled into the paper's template.

    The document ends at the *last* `</text>`, because it may contain that tag itself.

    Raises:
        RowError: A marker of the template is missing, or one of the parts is empty.
    """
    head, closing, tail = prompt.rpartition("</text>")
    _, opening, context = head.partition("<text>")
    question, instruction, _ = tail.partition("Format your response as follows")
    if not (closing and opening and instruction):
        marker = "</text>" if not closing else "<text>" if not opening else "Format your response as follows"
        raise RowError(RejectReason.BAD_PROMPT, f"the prompt does not contain {marker!r} where the template has it")
    context, question = context.removeprefix("\n").removesuffix("\n"), question.strip()
    if not context.strip() or not question:
        raise RowError(RejectReason.EMPTY, "the prompt has an empty document or question")
    return context, question


QUESTION_LAYOUTS = (
    Layout(
        columns=(("data_source",), ("context",), ("question",), ("answers", "answer")),
        parse=parse_own,
    ),
    Layout(columns=(("prompt",), ("data_source",), ("reward_model",)), parse=parse_published),
)


# ---- demonstrations


def parse_own_demonstration(row: Row) -> DemonstrationItem:
    """Read `{id, context, question, response}`."""
    context, question, response = _text(row, "context"), _text(row, "question").strip(), _text(row, "response")
    return DemonstrationItem(
        item_id=row_id(row) or derived_id(context, question, response),
        context=context,
        question=question,
        messages=(),
        response=response,
    )


def parse_conversation(row: Row) -> DemonstrationItem:
    """Read `{messages}`, whose last message is the response, or `{messages | prompt, response}`."""
    messages = _messages(row, "messages" if row.values.get("messages") is not None else "prompt")
    if row.values.get("response") is not None:
        prompt, response = messages, _text(row, "response")
    else:
        prompt, last = messages[:-1], messages[-1]
        if last["role"] != "assistant":
            detail = f"the last message is of role {last['role']!r}, not 'assistant', and there is no response"
            raise RowError(RejectReason.BAD_PROMPT, detail)
        response = last["content"]
    if not prompt or not response.strip():
        raise RowError(RejectReason.EMPTY, "the conversation has an empty prompt or response")
    return DemonstrationItem(
        item_id=row_id(row) or derived_id(json.dumps(prompt), response),
        context=None,
        question=None,
        messages=prompt,
        response=response,
    )


DEMONSTRATION_LAYOUTS = (
    Layout(columns=(("context",), ("question",), ("response",)), parse=parse_own_demonstration),
    Layout(columns=(("messages", "prompt"), ("response",)), parse=parse_conversation),
    Layout(columns=(("messages",),), parse=parse_conversation),
)


# ---- columns


def row_id(row: Row) -> str | None:
    """The id of a row as text; None where it has none."""
    value = row.values.get("id")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError(RejectReason.WRONG_TYPE, f"id is {type(value).__name__}, expected text or an integer")
    return _encodable(str(value).strip(), "id")


def _present(row: Row, column: str) -> Any:
    value = row.values.get(column)
    if value is None:
        raise RowError(RejectReason.MISSING_COLUMN, f"{column} is missing")
    return value


def _text(row: Row, column: str) -> str:
    return _checked_text(_present(row, column), column)


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


def _answers(row: Row) -> tuple[str, ...]:
    """`answers`, a list, a JSON list or one text; where it is empty, `answer`."""
    answers = _decoded_list(row.values.get("answers"))
    has_answers = answers is not None and len(_as_list(answers)) > 0
    if not has_answers and row.values.get("answer") is not None:
        return _accepted(row.values["answer"], "answer")
    return _accepted(_decoded_list(_present(row, "answers")), "answers")


def _accepted(value: Any, column: str) -> tuple[str, ...]:
    """The distinct non-empty answers, in order; numbers become text."""
    answers = dict.fromkeys(_answer_text(entry, column) for entry in _as_list(value))
    accepted = tuple(_encodable(answer, column) for answer in answers if answer.strip())
    if not accepted:
        raise RowError(RejectReason.EMPTY, f"{column} has no entry")
    return accepted


def _answer_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise RowError(RejectReason.WRONG_TYPE, f"{column} holds {value!r:.40}, expected text or a number")


def _as_list(value: Any) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy
    return list(value) if isinstance(value, list | tuple) else [value]


def _decoded_list(value: Any) -> Any:
    """A text that is a JSON list becomes that list; every other value stays as it is."""
    decoded = _decoded(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    return decoded if isinstance(decoded, list) else value


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _only_user_message(row: Row) -> str:
    messages = _messages(row, "prompt")
    if [message["role"] for message in messages] != ["user"]:
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(RejectReason.BAD_PROMPT, f"prompt has the roles {roles}; expected one user message")
    return messages[0]["content"]


def _messages(row: Row, column: str) -> tuple[Message, ...]:
    """A list of `{role, content}`, as a list, a JSON list or one plain text."""
    value = _decoded_list(_present(row, column))
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
