"""Tasks in quarantine: what is written down of them, and how many are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from curriculum.errors import RunFailed
from curriculum.transition import CurriculumReport

MIN_TASKS = 20
MAX_SHARE = 0.05
"""The run stops when more than `MIN_TASKS` tasks, and more than this share of all, are in quarantine."""


class TooManyQuarantined(RunFailed):
    """So many tasks failed that the fault is not theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedTask:
    """Why a task is not handed out any more."""

    reason: str
    actor: str
    """Name of the engine or judge that failed at it last."""
    step: int
    """Step of the run in which it was given up."""


def check_quarantine(tasks: Mapping[str, QuarantinedTask], report: CurriculumReport) -> None:
    """Check that few enough tasks are in quarantine for the fault to be theirs.

    Raises:
        TooManyQuarantined: more than `MIN_TASKS` and `MAX_SHARE` of all tasks are.
    """
    if report.num_quarantined <= max(MIN_TASKS, MAX_SHARE * report.num_tasks):
        return
    last = list(tasks.values())[-1]
    ((actor, number),) = Counter(task.actor for task in tasks.values()).most_common(1)
    raise TooManyQuarantined(
        f"{report.num_quarantined} of {report.num_tasks} tasks are in quarantine, {number} of them because of {actor}, "
        f"so the fault is hardly theirs; the last one: {last.reason}; read quarantine.jsonl and the actor's log under "
        "logs/, remove the cause, then go on from the last checkpoint with --resume"
    )
