"""All tasks of a run in a few flat columns: put into the object store once, looked up by id where they are sampled.

On a node every process maps the same memory, so a table costs a rollout actor the index of its ids and nothing per
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Task


class TextColumn:
    """N texts, end to end in one buffer."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._utf8 = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = _ends([len(text) for text in encoded])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        start, end = _bounds(self._ends, row)
        return self._utf8[start:end].tobytes().decode()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskColumns:
    """N tasks, column by column; see `Task` for what they mean."""

    task_ids: TextColumn
    data_sources: TextColumn
    questions: TextColumn
    answers: TextColumn
    """[sum of the tasks' answers] in the order of the tasks."""
    answer_ends: NDArray[np.int64]
    """[N] where the answers of each task end in `answers`."""
    prompt_ids: NDArray[np.int32]
    """[sum of P] the prompts, end to end."""
    prompt_ends: NDArray[np.int64]
    """[N] where each prompt ends in `prompt_ids`."""
    phases: NDArray[np.int32]
    """[N] phase of each task."""

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Self:
        """Pack tasks; at least one."""
        return cls(
            task_ids=TextColumn([task.task_id for task in tasks]),
            data_sources=TextColumn([task.data_source for task in tasks]),
            questions=TextColumn([task.question for task in tasks]),
            answers=TextColumn([answer for task in tasks for answer in task.answers]),
            answer_ends=_ends([len(task.answers) for task in tasks]),
            prompt_ids=np.concatenate([task.prompt_ids for task in tasks], dtype=np.int32),
            prompt_ends=_ends([task.prompt_ids.size for task in tasks]),
            phases=np.array([task.phase for task in tasks], np.int32),
        )

    def __len__(self) -> int:
        return len(self.phases)


class TaskTable:
    """Tasks by id; each is built when it is asked for, its prompt a view of the columns.

    Args:
        columns: The tasks; not copied.

    Raises:
        ValueError: An id repeats.
    """

    def __init__(self, columns: TaskColumns) -> None:
        self._columns = columns
        self._rows = {columns.task_ids[row]: row for row in range(len(columns))}
        if len(self._rows) < len(columns):
            raise ValueError(f"{len(columns)} tasks have {len(self._rows)} different ids; make the ids unique")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, task_id: str) -> Task:
        """Return the task with this id.

        Raises:
            KeyError: There is none.
        """
        row = self._rows.get(task_id)
        if row is None:
            raise KeyError(
                f"task {task_id}: not among the {len(self)} tasks of the table; start coordinator and rollout actors "
                "with the same tasks"
            )
        columns = self._columns
        first_answer, last_answer = _bounds(columns.answer_ends, row)
        start, end = _bounds(columns.prompt_ends, row)
        return Task(
            task_id=task_id,
            data_source=columns.data_sources[row],
            question=columns.questions[row],
            answers=tuple(columns.answers[index] for index in range(first_answer, last_answer)),
            prompt_ids=columns.prompt_ids[start:end],
            phase=int(columns.phases[row]),
        )


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum(lengths, dtype=np.int64)


def _bounds(ends: NDArray[np.int64], row: int) -> tuple[int, int]:
    """Return the first and the past-the-last position of a row."""
    return int(ends[row - 1]) if row else 0, int(ends[row])
