"""From a data source to tasks and demonstrations; bad rows are collected with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from curriculum.cells import row_id
from curriculum.config import DataSource, DemonstrationSource
from curriculum.errors import UserError, library_words
from curriculum.layout import (
    DEMONSTRATION_LAYOUTS,
    QUESTION_LAYOUTS,
    DemonstrationItem,
    ItemT,
    Layout,
    QuestionItem,
    choose_layout,
    derived_id,
)
from curriculum.phases import assign_phase
from curriculum.rejects import Reject, RejectReason, RowError, count_reasons
from curriculum.rows import Row, Table, open_table
from curriculum.synthetic_judge import JudgePrompt
from curriculum.task import Demonstration, Task

RecordT = TypeVar("RecordT")


class PromptEncoder(Protocol):
    """Template, chat template and tokenizer; implemented downstream, in `actors.prompt`."""

    def encode(self, context: str, question: str) -> NDArray[np.int32]:
        """Return the [P] token ids of the chat prompt."""
        ...

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        """Return the [P] token ids of a conversation, ready for the response."""
        ...

    def encode_response(self, text: str) -> NDArray[np.int32]:
        """Return the [R] token ids of a response, end-of-turn token included."""
        ...

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        """Cut the middle of the document so that the prompt has at most `max_tokens`.

        Raises:
            ValueError: The question alone is too long.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[RecordT]):
    """What a source holds: the records of its good rows, and the rows that were refused."""

    records: tuple[RecordT, ...]
    rejects: tuple[Reject, ...]


def load_tasks(
    source: DataSource,
    *,
    encoder: PromptEncoder,
    phase_limits: Sequence[int],
    over_long: Literal["drop", "truncate_middle"],
    key: str = "data.train",
    every_phase: bool = True,
) -> Loaded[Task]:
    """Read a source into tasks with phases.

    Args:
        source: File, hub id or generated data.
        encoder: Makes token ids of documents and questions.
        phase_limits: L_1 < L_2 < ... in prompt tokens; for a data set without phases the one limit of the model.
        over_long: `drop` refuses prompts beyond the last limit, `truncate_middle` cuts their documents to fit it.
        key: Recipe key of the source, for messages.
        every_phase: Insist on at least one task in every phase.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, no row is usable, or a phase stays empty.
    """
    table = open_table(source, key=key)
    name = f"{key}={table.name}"
    found = convert_rows(table, QUESTION_LAYOUTS, lambda item: _task(item, encoder, phase_limits, over_long), name=name)
    if every_phase:
        _check_phases(name, found.records, phase_limits)
    return found


def load_demonstrations(
    source: DemonstrationSource,
    *,
    encoder: PromptEncoder,
    max_tokens: int,
    key: str = "data.sft",
    judge_prompt: JudgePrompt | None = None,
) -> Loaded[Demonstration]:
    """Read a source into demonstrations of at most `max_tokens` prompt and response tokens together.

    Args:
        source: File, hub id or generated data.
        encoder: Makes token ids of prompts and responses.
        max_tokens: Longest demonstration; longer ones are refused, since a cut one is no longer verified.
        key: Recipe key of the source, for messages.
        judge_prompt: Words of the judge, for generated judge pairs.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, or no row is usable.
    """
    table = open_table(source, key=key, demonstrations=True, judge_prompt=judge_prompt)
    return convert_rows(
        table,
        DEMONSTRATION_LAYOUTS,
        lambda item: _demonstration(item, encoder, max_tokens),
        name=f"{key}={table.name}",
    )


def convert_rows(
    table: Table, layouts: Sequence[Layout[ItemT]], make: Callable[[ItemT], RecordT], *, name: str
) -> Loaded[RecordT]:
    """Turn the rows of a table into records; rows that cannot be used and repetitions are refused.

    Args:
        table: Rows, read once.
        layouts: Candidates in order of preference.
        make: Makes the record of an item; raises `RowError` to refuse it.
        name: `key=value` of the source, for messages.

    Raises:
        UserError: The columns fit no layout, or no row is usable.
    """
    layout = choose_layout(layouts, table.columns, name=name) if table.columns else None
    repetitions = _Repetitions()
    records: list[RecordT] = []
    rejects: list[Reject] = []
    num_rows = 0
    for row in table.rows:
        num_rows += 1
        if isinstance(row, Reject):
            rejects.append(row)
        elif layout is not None:
            try:
                item = layout.parse(row)
                repetitions.refuse(row.number, item)
                records.append(make(item))
            except RowError as error:
                rejects.append(_reject(row, error))
    if not records:
        raise UserError(f"{name}: {_why_nothing_is_usable(num_rows, rejects)}")
    return Loaded(records=tuple(records), rejects=tuple(rejects))


class _Repetitions:
    """Contents and ids of the items so far."""

    def __init__(self) -> None:
        self._row_of_content: dict[str, int] = {}
        self._row_of_id: dict[str, int] = {}

    def refuse(self, number: int, item: QuestionItem | DemonstrationItem) -> None:
        """Remember the item of row `number`; raise `RowError` where its content or its id occurred before."""
        content = derived_id(*item.content)
        if content in self._row_of_content:
            detail = f"the same content as row {self._row_of_content[content]}"
            raise RowError(RejectReason.DUPLICATE, detail)
        if item.item_id in self._row_of_id:
            detail = f"row {self._row_of_id[item.item_id]} has the id {item.item_id!r} and another content"
            raise RowError(RejectReason.ID_CONFLICT, detail)
        self._row_of_content[content] = self._row_of_id[item.item_id] = number


def _why_nothing_is_usable(num_rows: int, rejects: Sequence[Reject]) -> str:
    if not num_rows:
        return "the data set is empty; give it at least one row"
    if not rejects:
        return f"its {num_rows} rows have no columns; write the file again"
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(rejects).items())
    return f"none of {num_rows} rows is usable ({reasons}); row {rejects[0].number}: {rejects[0].detail}"


def _reject(row: Row, error: RowError) -> Reject:
    try:
        item_id = row_id(row)
    except RowError:
        item_id = None
    return Reject(number=row.number, item_id=item_id, reason=error.reason, detail=error.detail)


def _task(
    item: QuestionItem, encoder: PromptEncoder, limits: Sequence[int], over_long: Literal["drop", "truncate_middle"]
) -> Task:
    prompt_ids = _tokens(lambda: encoder.encode(item.context, item.question))
    if prompt_ids.size > limits[-1]:
        if over_long == "drop":
            detail = f"{prompt_ids.size} prompt tokens exceed {limits[-1]}; truncate it or raise the limit"
            raise RowError(RejectReason.OVER_LONG, detail)
        prompt_ids = _truncated(item, encoder, limits[-1])
    phase = assign_phase(prompt_ids.size, limits)
    assert phase is not None
    return Task(
        task_id=item.item_id,
        data_source=item.data_source,
        question=item.question,
        answers=item.answers,
        prompt_ids=prompt_ids,
        phase=phase,
    )


def _truncated(item: QuestionItem, encoder: PromptEncoder, max_tokens: int) -> NDArray[np.int32]:
    try:
        context = encoder.truncate_middle(item.context, item.question, max_tokens)
    except ValueError as error:
        raise RowError(RejectReason.OVER_LONG, str(error)) from error
    prompt_ids = _tokens(lambda: encoder.encode(context, item.question))
    if prompt_ids.size > max_tokens:
        detail = f"{prompt_ids.size} prompt tokens exceed {max_tokens} even after truncation"
        raise RowError(RejectReason.OVER_LONG, detail)
    return prompt_ids


def _demonstration(item: DemonstrationItem, encoder: PromptEncoder, max_tokens: int) -> Demonstration:
    if item.context is not None and item.question is not None:
        context, question = item.context, item.question
        prompt_ids = _tokens(lambda: encoder.encode(context, question))
    else:
        prompt_ids = _tokens(lambda: encoder.encode_messages(item.messages))
    response_ids = _tokens(lambda: encoder.encode_response(item.response))
    num_tokens = prompt_ids.size + response_ids.size
    if num_tokens > max_tokens:
        raise RowError(RejectReason.OVER_LONG, f"{num_tokens} tokens exceed {max_tokens}; raise the limit")
    return Demonstration(demonstration_id=item.item_id, prompt_ids=prompt_ids, response_ids=response_ids)


def _tokens(encode: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
    """Encode; what template or tokenizer raise about one row becomes a `RowError`."""
    try:
        ids = np.asarray(encode(), dtype=np.int32)
    except Exception as error:  # chat templates raise types of their own, for instance on unknown roles
        detail = f"the chat template refuses it: {library_words(error)}"
        raise RowError(RejectReason.NOT_ENCODABLE, detail) from error
    if ids.size == 0:
        raise RowError(RejectReason.NOT_ENCODABLE, "the tokenizer gives no token")
    return ids


def _check_phases(name: str, tasks: Sequence[Task], limits: Sequence[int]) -> None:
    for index, (low, high) in enumerate(pairwise([0, *limits])):
        if not any(task.phase == index for task in tasks):
            lengths = [task.prompt_ids.size for task in tasks]
            raise UserError(
                f"{name}: no item in phase {index} ({low} < prompt tokens <= {high}; the data has {min(lengths)} to "
                f"{max(lengths)}); change curriculum.phases[{index}].max_prompt_tokens or add data"
            )
