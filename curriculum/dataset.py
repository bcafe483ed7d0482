"""From a data source to tasks and demonstrations; bad rows are collected with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

import xxhash

from curriculum.cells import row_id
from curriculum.columns import loaded_columns, mapped
from curriculum.config import DataConfig, DataSource, DemonstrationSource
from curriculum.errors import UserError
from curriculum.layout import (
    DEMONSTRATION_LAYOUTS,
    DemonstrationItem,
    ItemT,
    Layout,
    QuestionItem,
    choose_layout,
    derived_id,
    question_layouts,
)
from curriculum.phases import assign_phase
from curriculum.prompts import PromptEncoder, fitting_prompt, tokens, with_document
from curriculum.rejects import Reject, RejectReason, RowError, count_reasons
from curriculum.rows import Row, Table
from curriculum.sources import open_table
from curriculum.synthetic_judge import JudgePrompt
from curriculum.task import Demonstration, Task

RecordT = TypeVar("RecordT")
_AS_IT_IS = DataConfig()
ALWAYS_READ = frozenset({"id", "context", "question"})
"""Columns, by our names, that a layout may read beside those that it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[RecordT]):
    """What a source holds: the records of its good rows, and the rows that were refused."""

    records: tuple[RecordT, ...]
    rejects: tuple[Reject, ...]
    digest: str
    """Of the rows as they are stored, before phases and tokenizer look at them: 128 bits in hex."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A task with the text that it was made of."""

    item: QuestionItem
    task: Task


def load_tasks(
    source: DataSource,
    *,
    encoder: PromptEncoder,
    phase_limits: Sequence[int],
    over_long: Literal["drop", "truncate_middle"],
    key: str = "data.train",
    every_phase: bool = True,
    is_payable: Callable[[QuestionItem], bool] | None = None,
    form: DataConfig = _AS_IT_IS,
    seen: Callable[[QuestionItem], None] = lambda _: None,
) -> Loaded[Task]:
    """Read a source into tasks with phases.

    Args:
        source: File, hub id or generated data.
        encoder: Makes token ids of documents and questions.
        phase_limits: L_1 < L_2 < ... in prompt tokens; for a data set without phases the one limit of the model.
        over_long: `drop` refuses prompts beyond the last limit, `truncate_middle` cuts their documents to fit it.
        key: Recipe key of the source, for messages.
        every_phase: Insist on at least one task in every phase.
        is_payable: Whether some response can earn a reward for an item; items for which none can are refused.
        form: How rows are read: `columns`, `prompt` and `markers`.
        seen: Is shown every item that can become a task; raises `RowError` to refuse it.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, no row is usable, or a phase stays empty.
    """
    table = _question_table(source, form, key)
    name = f"{key}={table.name}"

    def make(item: QuestionItem) -> Task:
        _check_payable(item, is_payable)
        task = _task(item, encoder, phase_limits, over_long)
        seen(item)
        return task

    found = convert_rows(table, question_layouts(form), make, name=name, merge=_with_answers_of)
    if every_phase:
        _check_phases(name, found.records, phase_limits)
    return found


def load_questions(
    source: DataSource,
    *,
    encoder: PromptEncoder,
    phase_limits: Sequence[int],
    over_long: Literal["drop", "truncate_middle"],
    key: str = "data.evaluation",
    is_payable: Callable[[QuestionItem], bool] | None = None,
    form: DataConfig = _AS_IT_IS,
    seen: Callable[[QuestionItem], None] = lambda _: None,
) -> Loaded[Question]:
    """Read a source as `load_tasks` does, and keep the text of every question; a phase may stay empty.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, or no row is usable.
    """
    table = _question_table(source, form, key)

    def make(item: QuestionItem) -> Question:
        _check_payable(item, is_payable)
        task = _task(item, encoder, phase_limits, over_long)
        seen(item)
        return Question(item=item, task=task)

    def merge(question: Question, item: QuestionItem) -> Question:
        task = _with_answers_of(question.task, item)
        return Question(item=replace(question.item, answers=task.answers), task=task)

    return convert_rows(table, question_layouts(form), make, name=f"{key}={table.name}", merge=merge)


def task_about(question: Question, document: str, *, encoder: PromptEncoder, max_tokens: int) -> Task:
    """Return the task of a question with another document, cut to fit the limit, or with none ("").

    Raises:
        RowError: The prompt has no document that could be replaced, or cannot be made with this one.
    """
    item = with_document(question.item, document)
    return replace(question.task, prompt_ids=fitting_prompt(item, encoder, max_tokens, "truncate_middle"))


def load_demonstrations(
    source: DemonstrationSource,
    *,
    encoder: PromptEncoder,
    max_tokens: int,
    key: str = "data.sft",
    judge_prompt: JudgePrompt | None = None,
    form: DataConfig = _AS_IT_IS,
    seen: Callable[[DemonstrationItem], None] = lambda _: None,
) -> Loaded[Demonstration]:
    """Read a source into demonstrations of at most `max_tokens` prompt and response tokens together.

    Args:
        source: File, hub id or generated data.
        encoder: Makes token ids of prompts and responses.
        max_tokens: Longest demonstration; longer ones are refused, since a cut one is no longer verified.
        key: Recipe key of the source, for messages.
        judge_prompt: Words of the judge, for generated judge pairs.
        form: How rows are read; of it `columns`.
        seen: Is shown every item that becomes a demonstration.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, or no row is usable.
    """
    columns = loaded_columns(form.columns)
    opened = open_table(source, key=key, demonstrations=True, judge_prompt=judge_prompt, columns=columns)
    table = with_our_columns(source, opened, DEMONSTRATION_LAYOUTS, form, key)

    def make(item: DemonstrationItem) -> Demonstration:
        demonstration = _demonstration(item, encoder, max_tokens)
        seen(item)
        return demonstration

    return convert_rows(table, DEMONSTRATION_LAYOUTS, make, name=f"{key}={table.name}")


def _question_table(source: DataSource, form: DataConfig, key: str) -> Table:
    table = open_table(source, key=key, columns=loaded_columns(form.columns))
    return with_our_columns(source, table, question_layouts(form), form, key)


def _check_payable(item: QuestionItem, is_payable: Callable[[QuestionItem], bool] | None) -> None:
    if is_payable is not None and not is_payable(item):
        answers = " or ".join(map(repr, item.answers))
        detail = f"no response matches {answers:.80} by the rule of data source {item.data_source!r:.40}"
        raise RowError(RejectReason.UNPAYABLE, detail + "; change the answer or reward.kinds, or name a judge")


def with_our_columns(
    source: DemonstrationSource, table: Table, layouts: Sequence[Layout[Any]], form: DataConfig, key: str
) -> Table:
    """Return a table with the columns that its layouts read; what is generated has them already."""
    if not isinstance(source, str | tuple):
        return table
    known = ALWAYS_READ | {name for layout in layouts for names in layout.columns for name in names}
    return mapped(table, form.columns, known, name=f"{key}={table.name}")


def convert_rows(
    table: Table,
    layouts: Sequence[Layout[ItemT]],
    make: Callable[[ItemT], RecordT],
    *,
    name: str,
    merge: Callable[[RecordT, ItemT], RecordT] | None = None,
) -> Loaded[RecordT]:
    """Turn the rows of a table into records; rows that cannot be used and repetitions are refused.

    Args:
        table: Rows, read once.
        layouts: Candidates in order of preference.
        make: Makes the record of an item; raises `RowError` to refuse it.
        name: `key=value` of the source, for messages.
        merge: Puts what a repetition adds into the record of its first row.

    Raises:
        UserError: The columns fit no layout, or no row is usable.
    """
    layout_of = row_layouts(table, layouts, name=name)
    repetitions = _Repetitions()
    records: list[RecordT] = []
    record_of_row: dict[str, int] = {}
    rejects: list[Reject] = []
    num_rows, digest = 0, xxhash.xxh3_128()
    for row in table.rows:
        num_rows += 1
        digest.update(repr(row).encode("utf-8", errors="backslashreplace"))
        if isinstance(row, Reject):
            rejects.append(row)
        elif layout := layout_of[row.file]:
            try:
                item = layout.parse(row)
                first = repetitions.first_row(row.place, item)
                if first is not None:
                    if merge is not None and first in record_of_row:
                        records[record_of_row[first]] = merge(records[record_of_row[first]], item)
                    raise RowError(RejectReason.DUPLICATE, f"the same content as {first}")
                records.append(make(item))
                record_of_row[row.place] = len(records) - 1
            except RowError as error:
                rejects.append(_reject(row, error))
    if not records:
        raise UserError(f"{name}: {_why_nothing_is_usable(num_rows, rejects)}")
    return Loaded(records=tuple(records), rejects=tuple(rejects), digest=digest.hexdigest())


def row_layouts(table: Table, layouts: Sequence[Layout[ItemT]], *, name: str) -> dict[str | None, Layout[ItemT] | None]:
    """Return the layout of rows by `Row.file`, which is None for all rows of a single file; None without columns.

    Raises:
        UserError: Columns fit no layout.
    """
    if table.columns_of:
        return {
            file: choose_layout(layouts, columns, name=f"{name}: {file}") for file, columns in table.columns_of.items()
        }
    return {None: choose_layout(layouts, table.columns, name=name) if table.columns else None}


class _Repetitions:
    """Contents and ids of the items so far."""

    def __init__(self) -> None:
        self._row_of_content: dict[str, str] = {}
        self._row_of_id: dict[str, str] = {}

    def first_row(self, place: str, item: QuestionItem | DemonstrationItem) -> str | None:
        """Remember the item of the row at `place`; return the earlier row of the same content, if there is one.

        Raises:
            RowError: its id occurred before with another content.
        """
        content = derived_id(*item.content)
        if content in self._row_of_content:
            return self._row_of_content[content]
        if item.item_id in self._row_of_id:
            detail = f"{self._row_of_id[item.item_id]} has the id {item.item_id!r} and another content"
            raise RowError(RejectReason.ID_CONFLICT, detail)
        self._row_of_content[content] = self._row_of_id[item.item_id] = place
        return None


def _why_nothing_is_usable(num_rows: int, rejects: Sequence[Reject]) -> str:
    if not num_rows:
        return "the data set is empty; give it at least one row"
    if not rejects:
        return f"its {num_rows} rows have no columns; write the file again"
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(rejects).items())
    return f"none of {num_rows} rows is usable ({reasons}); {rejects[0].place}: {rejects[0].detail}"


def _reject(row: Row, error: RowError) -> Reject:
    try:
        item_id = row_id(row)
    except RowError:
        item_id = None
    return Reject(number=row.number, item_id=item_id, reason=error.reason, detail=error.detail, file=row.file)


def _task(
    item: QuestionItem, encoder: PromptEncoder, limits: Sequence[int], over_long: Literal["drop", "truncate_middle"]
) -> Task:
    prompt_ids = fitting_prompt(item, encoder, limits[-1], over_long)
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


def _with_answers_of(task: Task, item: QuestionItem) -> Task:
    """Return a task that also accepts what a repetition of its question accepts."""
    if item.data_source != task.data_source:
        return task
    return replace(task, answers=tuple(dict.fromkeys([*task.answers, *item.answers])))


def _demonstration(item: DemonstrationItem, encoder: PromptEncoder, max_tokens: int) -> Demonstration:
    if item.context is not None and item.question is not None:
        context, question = item.context, item.question
        prompt_ids = tokens(lambda: encoder.encode(context, question))
    else:
        prompt_ids = tokens(lambda: encoder.encode_messages(item.messages))
    response_ids = tokens(lambda: encoder.encode_response(item.response))
    num_tokens = prompt_ids.size + response_ids.size
    if num_tokens > max_tokens:
        raise RowError(RejectReason.OVER_LONG, f"{num_tokens} tokens exceed {max_tokens}; raise the limit")
    return Demonstration(demonstration_id=item.item_id, prompt_ids=prompt_ids, response_ids=response_ids)


def _check_phases(name: str, tasks: Sequence[Task], limits: Sequence[int]) -> None:
    for index, (low, high) in enumerate(pairwise([0, *limits])):
        if not any(task.phase == index for task in tasks):
            lengths = [task.prompt_ids.size for task in tasks]
            raise UserError(
                f"{name}: no item in phase {index} ({low} < prompt tokens <= {high}; the data has {min(lengths)} to "
                f"{max(lengths)}); change curriculum.phases[{index}].max_prompt_tokens or add data"
            )
