"""The answers of the model: one parquet file for each training step, one row for each answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.trajectory import Group
from cluster.group import ScoredGroup
from curriculum.files import file_errors, whole_file

COLUMNS = (
    "step", "lease_id", "prompt_id", "sample", "data_source", "phase", "replayed", "question", "truth", "response",
    "answer", "rule", "judge", "accuracy", "reward", "reason", "advantage", "trained", "policy_version",
    "newest_policy_version", "engine", "finish_reason", "prompt_tokens", "response_tokens",
)  # fmt: skip
"""`prompt_id` is the task's id; `judge` is null if it was not asked, `accuracy` and `reward` if unknown. `advantage` is
the number that the learner trained with, null if it did not train on the answer. The policy versions are those of the
oldest and of the newest token."""


def write_trajectories(
    directory: Path,
    step: int,
    sampled: Sequence[tuple[ScoredGroup, Group]],
    decode: Callable[[Sequence[int]], str],
) -> Path:
    """Write every answer of a step, trained on or not; the file appears whole or not at all."""
    import pyarrow as pa

    rows = [row for scored, group in sampled for row in answer_rows(step, scored, group, decode)]
    return write_step(directory, step, pa.table({column: [row[column] for row in rows] for column in COLUMNS}))


def write_step(directory: Path, step: int, table: Any) -> Path:
    """Write the arrow table of a step into a folder; the file appears whole, and replaces one of the same step.

    Raises:
        UserError: it cannot be written.
    """
    import pyarrow.parquet as pq

    path = directory / f"step-{step:06d}.parquet"
    with file_errors(directory, "written"):
        directory.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, file_errors(path, "written"):
        pq.write_table(table, partial)
    return path


def answer_rows(
    step: int, scored: ScoredGroup, group: Group, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """Return the answers of a group, a value for each of `COLUMNS`."""
    task, lease = group.task, group.lease
    shared = {
        "step": step,
        "lease_id": lease.lease_id,
        "prompt_id": task.task_id,
        "data_source": task.data_source,
        "phase": lease.phase,
        "replayed": lease.replayed,
        "question": task.question,
        "truth": list(task.answers),
        "trained": scored.advantages is not None,
        "engine": group.engine,
        "prompt_tokens": len(task.prompt_ids),
    }
    advantages = scored.advantages or (None,) * len(scored.scores)
    answers = zip(group.trajectories, scored.scores, advantages, strict=True)
    return [
        {
            **shared,
            "sample": index,
            "response": decode(trajectory.response_ids.tolist()),
            "answer": score.answer,
            "rule": score.rule,
            "judge": None if score.judge is None else str(score.judge),
            "accuracy": score.accuracy,
            "reward": score.reward,
            "reason": score.reason,
            "advantage": advantage,
            "policy_version": trajectory.policy_version,
            "newest_policy_version": trajectory.newest_policy_version,
            "finish_reason": str(trajectory.finish_reason),
            "response_tokens": len(trajectory.response_ids),
        }
        for index, (trajectory, score, advantage) in enumerate(answers)
    ]
