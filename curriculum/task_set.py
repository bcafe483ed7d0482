"""All tasks of a run together: what is checked of them, and what a saved state is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from curriculum.config import CurriculumConfig
from curriculum.errors import UserError
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


def check_state(state: Mapping[str, Any], *, expected_format: int, expected_fingerprint: str) -> None:
    """Check that a saved state can be read, and belongs to these tasks, phases and seed.

    Raises:
        UserError: it cannot, or does not.
    """
    if state.get("format") != expected_format:
        raise UserError(
            f"curriculum state: format={state.get('format')!r}, this version reads {expected_format}; "
            "resume with the version that wrote the checkpoint"
        )
    if state.get("fingerprint") != expected_fingerprint:
        raise UserError(
            f"curriculum state: fingerprint={state.get('fingerprint')}, the recipe gives {expected_fingerprint}; "
            "resume with the same tasks, phases and seed, or start a new run"
        )


def check_measured(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run whose weights are those of the base model has measured it.

    Args:
        before: `curriculum.retrospective` with which the state was saved.
        now: the one with which the run goes on.

    Raises:
        UserError: it has not.
    """
    if now.get("difficulty") == "base" != before.get("difficulty"):
        raise UserError(
            "curriculum.retrospective.difficulty=base: the base model was not measured when this run started; leave it "
            "as it was, or start a new run"
        )


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


def by_source(tasks: Sequence[TaskEntry], balance: Literal["none", "data_source"]) -> list[list[str]]:
    """Return task ids in the lists that share a batch equally: one for all, or one per data source, by its name."""
    if balance == "none":
        return [[task.task_id for task in tasks]]
    sources: dict[str, list[str]] = {}
    for task in tasks:
        sources.setdefault(task.data_source, []).append(task.task_id)
    return [sources[name] for name in sorted(sources)]
