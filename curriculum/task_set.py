"""All tasks of a run together: what is checked of them, and what a saved state is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from curriculum.config import CurriculumConfig
from curriculum.task import TaskEntry


def fingerprint(tasks: Sequence[TaskEntry], config: CurriculumConfig, seed: int) -> str:
    """Digest what a state is bound to: the seed, the lengths of the phases, and the tasks in order.

    When a phase ends and what is replayed may change between two states, if the user wants it.
    """
    limits = [phase.max_prompt_tokens for phase in config.phases]
    digest = hashlib.sha256(json.dumps([seed, limits]).encode())
    for task in tasks:
        digest.update(f"\n{task.phase} {task.task_id}".encode())
    return digest.hexdigest()[:16]


def check_tasks(tasks: Sequence[TaskEntry], config: CurriculumConfig) -> None:
    """Check that ids are unique and that every phase has tasks.

    Raises:
        ValueError: they are not, or one has none.
    """
    if not config.phases:
        raise ValueError("curriculum.phases=(): nothing to coordinate; add a phase or run the warm-up only")
    seen: set[str] = set()
    for task in tasks:
        if task.task_id in seen:
            raise ValueError(f"task {task.task_id}: the id is not unique; rename or remove one of the rows")
        if not 0 <= task.phase < len(config.phases):
            raise ValueError(f"task {task.task_id}: phase={task.phase}, expected 0..{len(config.phases) - 1}")
        seen.add(task.task_id)
    for index, phase in enumerate(config.phases):
        if not any(task.phase == index for task in tasks):
            raise ValueError(
                f"curriculum.phases[{index}]={phase.name}: no task has a length in this phase; "
                "change its max_prompt_tokens or remove the phase"
            )
