"""Layouts of the data: from the columns of a raw row to a question, or to a demonstration.

Questions come as our own `{id, data_source, context, question, answers}` or as published with DocQA-RL-1.6K
(`prompt`, `data_source`, `reward_model.ground_truth`), where the prompt text is already filled into the template.
Demonstrations come as our own columns plus `response`, as `{messages}` whose last message is the response, or as
`{prompt | messages, response}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Generic, TypeVar, cast

from curriculum.cells import Message, accepted_answers, answers_of, decoded, messages_of, present, row_id, text_of
from curriculum.config import DataConfig, Markers
from curriculum.errors import UserError
from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionItem:
    """A question about a document, in text."""

    item_id: str
    data_source: str
    context: str
    question: str
    answers: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    """The prompt, where it is kept as it is; document and question may be empty then."""

    @property
    def content(self) -> tuple[str, ...]:
        """What makes two items the same question."""
        if self.messages:
            return (json.dumps(self.messages),)
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
        """Return whether every needed column is there."""
        return all(any(name in columns for name in names) for names in self.columns)

    def __str__(self) -> str:
        return "{" + ", ".join("|".join(names) for names in self.columns) + "}"


def choose_layout(layouts: Sequence[Layout[ItemT]], columns: Sequence[str], *, name: str) -> Layout[ItemT]:
    """Return the first layout whose columns are all there.

    Args:
        layouts: Candidates in order of preference.
        columns: Columns of the source.
        name: `key=value` of the source, for the message.

    Raises:
        UserError: None fits; the message names the columns found, the ones needed and the nearest of them.
    """
    for layout in layouts:
        if layout.fits(columns):
            return layout
    wanted = " or ".join(str(layout) for layout in layouts)
    found = ", ".join(columns) or "none"
    raise UserError(f"{name}: no recognised columns; found {found}; need {wanted}{_way_out(layouts, columns)}")


def _way_out(layouts: Sequence[Layout[Any]], columns: Sequence[str]) -> str:
    known = {name for layout in layouts for names in layout.columns for name in names}
    wanted = known - set(columns)
    renames: list[str] = []
    for column in (column for column in columns if column not in known):
        if near := get_close_matches(column.lower(), wanted, n=1):
            wanted.discard(near[0])
            renames.append(f"{column} -> {near[0]}")
    if renames:
        return f"; rename {', '.join(renames)}, or map them with data.columns of a recipe"
    if "messages" not in known and {"messages", "prompt"} & set(columns):
        return "; a recipe takes prompts as they are with data.prompt=keep"
    return ""


def derived_id(*parts: str) -> str:
    """Return 16 hex digits that depend on the content alone."""
    return hashlib.sha1("\0".join(parts).encode(), usedforsecurity=False).hexdigest()[:16]


# ---- questions


def parse_own(row: Row) -> QuestionItem:
    """Read `{id, data_source, context, question, answers | answer}`."""
    context, question = text_of(row, "context"), text_of(row, "question")
    return QuestionItem(
        item_id=row_id(row) or derived_id(context, question),
        data_source=text_of(row, "data_source"),
        context=context,
        question=question.strip(),
        answers=answers_of(row),
    )


def parse_published(row: Row) -> QuestionItem:
    """Read a row of DocQA-RL-1.6K. The ground truth may be a sentence ("... the answer is X") and is kept as it is."""
    context, question = split_prompt(_only_user_message(row))
    return QuestionItem(
        item_id=row_id(row) or derived_id(context, question),
        data_source=text_of(row, "data_source"),
        context=context,
        question=question,
        answers=_published_answers(row),
    )


def _published_answers(row: Row) -> tuple[str, ...]:
    reward_model = decoded(present(row, "reward_model"))
    truth = cast("Mapping[Any, Any]", reward_model).get("ground_truth") if isinstance(reward_model, Mapping) else None
    if truth is None:
        raise RowError(RejectReason.MISSING_COLUMN, "reward_model has no ground_truth")
    return accepted_answers(truth, "reward_model.ground_truth")


def _only_user_message(row: Row) -> str:
    messages = messages_of(row, "prompt")
    if [message["role"] for message in messages] != ["user"]:
        roles = ", ".join(message["role"] for message in messages)
        detail = f"prompt has the roles {roles}; expected one user message; a recipe takes others with data.prompt=keep"
        raise RowError(RejectReason.BAD_PROMPT, detail)
    return messages[0]["content"]


def split_prompt(prompt: str) -> tuple[str, str]:
    """Return document and question of a prompt that was filled into the paper's template.

    The document ends at the *last* `</text>`, because it may contain that tag itself.

    Raises:
        RowError: A marker of the template is missing, or one of the parts is empty.
    """
    head, closing, tail = prompt.rpartition("</text>")
    _, opening, context = head.partition("<text>")
    question, instruction, _ = tail.partition("Format your response as follows")
    if not (closing and opening and instruction):
        marker = "</text>" if not closing else "<text>" if not opening else "Format your response as follows"
        detail = f"the prompt has no {marker!r} where the template has it; a recipe takes others with data.prompt=keep"
        raise RowError(RejectReason.BAD_PROMPT, detail)
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


def question_layouts(data: DataConfig) -> tuple[Layout[QuestionItem], ...]:
    """Return the layouts of questions that a recipe admits."""
    if data.prompt == "paper":
        return QUESTION_LAYOUTS
    columns = (("prompt", "messages"), ("data_source",), ("answers", "answer", "reward_model"))
    return (Layout(columns=columns, parse=partial(parse_kept, markers=data.markers)),)


# ---- questions whose prompt is kept


def parse_kept(row: Row, markers: Markers) -> QuestionItem:
    """Read `{id, prompt | messages, data_source, answers | answer | reward_model}`, the prompt as it is."""
    messages = messages_of(row, "prompt" if row.values.get("prompt") is not None else "messages")
    last = messages[-1]
    if last["role"] != "user" or not last["content"].strip():
        raise RowError(RejectReason.BAD_PROMPT, f"the last message is empty or of role {last['role']!r}, not 'user'")
    has_answers = any(row.values.get(column) is not None for column in ("answers", "answer"))
    context, question = _marked_parts(messages, markers)
    return QuestionItem(
        item_id=row_id(row) or derived_id(json.dumps(messages)),
        data_source=text_of(row, "data_source"),
        context=_text_or_none(row, "context") if context is None else context,
        question=_text_or_none(row, "question") if question is None else question,
        answers=answers_of(row) if has_answers else _published_answers(row),
        messages=messages,
    )


def _text_or_none(row: Row, column: str) -> str:
    return text_of(row, column).strip() if row.values.get(column) is not None else ""


def _marked_parts(messages: Sequence[Message], markers: Markers) -> tuple[str | None, str | None]:
    """Return document and question as markers find them, None without markers; `RowError` where they are not found."""
    context, rest = None, (messages[-1]["content"],)
    if markers.context is not None:
        before, behind = markers.context
        for message in reversed(messages):
            text = message["content"]
            start = text.find(before) + len(before)
            end = text.rfind(behind, start) if before in text else -1
            if end >= 0:
                context = _found(text[start:end], "context", markers.context)
                rest = (text[end:], text[: start - len(before)]) if message is messages[-1] else rest
                break
        else:
            raise _not_found("context", markers.context)
    if markers.question is None:
        return context, None
    before, behind = markers.question
    for text in rest:
        if before in text:
            tail = text[text.find(before) + len(before) :]
            end = tail.find(behind) if behind else len(tail)
            if end >= 0:
                return context, _found(tail[:end], "question", markers.question)
    raise _not_found("question", markers.question)


def _found(text: str, part: str, markers: tuple[str, str]) -> str:
    if not text.strip():
        raise RowError(RejectReason.EMPTY, f"nothing lies between {_shown(markers)} of data.markers.{part}")
    return text.strip()


def _not_found(part: str, markers: tuple[str, str]) -> RowError:
    detail = f"the prompt does not hold {_shown(markers)} of data.markers.{part}; change them, or the row"
    return RowError(RejectReason.BAD_PROMPT, detail)


def _shown(markers: tuple[str, str]) -> str:
    return " … ".join(f"{marker!r:.60}" for marker in markers)


# ---- demonstrations


def parse_own_demonstration(row: Row) -> DemonstrationItem:
    """Read `{id, context, question, response}`."""
    context, question, response = text_of(row, "context"), text_of(row, "question").strip(), text_of(row, "response")
    return DemonstrationItem(
        item_id=row_id(row) or derived_id(context, question, response),
        context=context,
        question=question,
        messages=(),
        response=response,
    )


def parse_conversation(row: Row) -> DemonstrationItem:
    """Read `{messages}`, whose last message is the response, or `{messages | prompt, response}`."""
    messages = messages_of(row, "messages" if row.values.get("messages") is not None else "prompt")
    if row.values.get("response") is not None:
        prompt, response = messages, text_of(row, "response")
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
