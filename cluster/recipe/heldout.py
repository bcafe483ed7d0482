"""The held-out questions of a recipe, as they are and under the controls that it asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.recipe.config import RunConfig
from curriculum.controls import Control, documents_under
from curriculum.dataset import Question, task_about
from curriculum.errors import UserError
from curriculum.files import file_errors, whole_file
from curriculum.layout import QuestionItem
from curriculum.printable import printable_json
from curriculum.prompts import PromptEncoder
from curriculum.rejects import RowError
from curriculum.task import Task

TasksByPhase = Mapping[str, tuple[Task, ...]]
"""Tasks by the name of the phase of their length; a phase without any is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSet:
    """Questions that are never trained on."""

    tasks: TasksByPhase = field(default_factory=dict[str, tuple[Task, ...]])
    """As they are; empty without `data.evaluation`."""
    under: Mapping[Control, TasksByPhase] = field(default_factory=dict[Control, TasksByPhase])
    """The same questions under each control, each in the phase that it has with its own document. Questions that have
    no other document are left out."""
    items: tuple[QuestionItem, ...] = ()
    """Their texts."""


def heldout_set(config: RunConfig, questions: Sequence[Question], encoder: PromptEncoder) -> HeldOutSet:
    """Make the held-out set of questions that have been read.

    Raises:
        UserError: a question cannot be asked under a control of the recipe.
    """
    return HeldOutSet(
        tasks=_by_phase(config, [question.task for question in questions]),
        under={
            control: _by_phase(config, _under(config, control, questions, encoder))
            for control in config.evaluation.control
        },
        items=tuple(question.item for question in questions),
    )


def write_questions(items: Sequence[QuestionItem], path: Path) -> None:
    """Write the texts of questions as one JSON object a line, which `qwenlong eval` reads; replace an earlier file.

    Raises:
        UserError: it cannot be written.
    """
    with file_errors(path.parent, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, file_errors(path, "written"), partial.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(printable_json(json.dumps(_row(item), ensure_ascii=False)) + "\n")


def _under(config: RunConfig, control: Control, questions: Sequence[Question], encoder: PromptEncoder) -> list[Task]:
    documents = documents_under(control, [question.item.context for question in questions], seed=config.seed)
    pairs = zip(questions, documents, strict=True)
    tasks = [_task(config, control, question, text, encoder) for question, text in pairs if text is not None]
    if not tasks:
        raise UserError(
            f"evaluation.control={control}: the questions of data.evaluation have no other document than their own; "
            "add some about another one, or leave the control out"
        )
    return tasks


def _task(config: RunConfig, control: Control, question: Question, document: str, encoder: PromptEncoder) -> Task:
    try:
        return task_about(question, document, encoder=encoder, max_tokens=config.max_prompt_tokens)
    except RowError as error:
        raise UserError(
            f"evaluation.control={control}: question {question.item.item_id!r:.80} of data.evaluation cannot be asked "
            f"so: {error.detail}; or leave the control out"
        ) from error


def _by_phase(config: RunConfig, tasks: Sequence[Task]) -> TasksByPhase:
    found = {
        phase.name: tuple(task for task in tasks if task.phase == index)
        for index, phase in enumerate(config.curriculum.phases)
    }
    return {name: tasks for name, tasks in found.items() if tasks}


def _row(item: QuestionItem) -> dict[str, Any]:
    return {
        "id": item.item_id,
        "data_source": item.data_source,
        "context": item.context,
        "question": item.question,
        "answers": list(item.answers),
        **({"prompt": list(item.messages)} if item.messages else {}),
    }
