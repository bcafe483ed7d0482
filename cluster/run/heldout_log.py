"""The answers to the held-out questions: one parquet file for each evaluation, one row for each answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.trajectory import Group
from cluster.run.heldout_statistics import HeldOutGroup
from cluster.run.trajectory_log import answer_rows, write_step

COLUMNS = {
    "step": "integer", "id": "text", "control": "text", "phase": "text", "sample": "integer", "data_source": "text",
    "question": "text", "truth": "texts", "response": "text", "answer": "text", "rule": "number", "judge": "text",
    "accuracy": "number", "reason": "text", "finish_reason": "text", "prompt_tokens": "integer",
    "response_tokens": "integer", "policy_version": "integer", "engine": "text",
}  # fmt: skip
"""Type by column. `step` counts the training steps that were finished, `id` is that of `questions.jsonl`, `phase` names
the phase that the question has the length of, and `control` is null where it was asked as it is. `judge` is null if it
was not asked, `accuracy` if unknown, and everything from `response` on if there is no answer."""
FAILED = "engines or judges failed at the question again and again"


def write_heldout(
    directory: Path,
    step: int,
    answered: Sequence[tuple[HeldOutGroup, Group | None]],
    decode: Callable[[Sequence[int]], str],
    *,
    num_samples: int,
) -> Path:
    """Write every answer of an evaluation; the file appears whole or not at all, and replaces one of the same step.

    Args:
        directory: where the file goes.
        step: training steps that were finished.
        answered: the questions with the tokens of their answers; None where there are none.
        decode: turns the token ids of an answer into its text.
        num_samples: answers that were asked for, to each question.

    Raises:
        UserError: it cannot be written.
    """
    import pyarrow as pa

    rows = [row for asked, group in answered for row in _rows(step, asked, group, decode, num_samples)]
    types = {"text": pa.string(), "texts": pa.list_(pa.string()), "integer": pa.int64(), "number": pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=schema)
    return write_step(directory, step, table)


def _rows(
    step: int, asked: HeldOutGroup, group: Group | None, decode: Callable[[Sequence[int]], str], num_samples: int
) -> list[dict[str, Any]]:
    task = asked.task
    shared = {"step": step, "id": task.task_id, "control": asked.control, "phase": asked.phase}
    if asked.scored is None or group is None:
        question = {"data_source": task.data_source, "question": task.question, "truth": list(task.answers)}
        return [{**shared, **question, "sample": sample, "reason": FAILED} for sample in range(num_samples)]
    return [{**row, **shared} for row in answer_rows(step, asked.scored, group, decode)]
