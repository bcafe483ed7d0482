"""What cannot be repaired in place: the run is launched again from its last whole checkpoint, within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curriculum.errors import RunFailed


class RestartFromCheckpoint(RunFailed):
    """The run cannot go on as it is; all actors are ended, and it goes on from its last whole checkpoint.

    Args:
        reason: what happened, in one line.
        part: who is to blame, as events name it; each part is counted by itself.
    """

    def __init__(self, reason: str, *, part: str = "run") -> None:
        super().__init__(reason)
        self.reason = reason
        self.part = part


class LearnerLost(RestartFromCheckpoint):
    """A learner rank is gone; the other ranks wait for it in a collective and cannot go on without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, part="learner")


class CoordinatorLost(RestartFromCheckpoint):
    """The coordinator is gone; what it knew of the running step is lost, what it knew before is kept by the driver."""

    def __init__(self, reason: str = "the coordinator died") -> None:
        super().__init__(reason, part="coordinator")


class RayLost(RunFailed):
    """Ray's head, or its process of this node, is gone; no call to Ray may be made any more."""


class FaultRecord:
    """Every fault that was handled: told at once, and counted by who had it."""

    def __init__(self, note: Callable[..., Any], say: Callable[[str], Any]) -> None:
        """Take what records the fields of an event `fault`, and what prints a line."""
        self._note = note
        self._say = say
        self._counts: Counter[str] = Counter()

    def add(self, **fields: Any) -> None:
        """Record a fault; an actor that is back or a run that goes on is told, not counted."""
        self._note(**fields)
        self._say("fault: " + ", ".join(f"{key}={value}" for key, value in fields.items()))
        if "error" in fields or "kind" in fields:
            self._counts[str(fields.get("actor") or fields.get("engine") or fields.get("part"))] += 1

    def summary(self) -> str:
        """Return the counts by actor, in one line."""
        return "faults of this command: " + (", ".join(f"{who} {count}" for who, count in self._counts.items()) or "0")


class RestartBudget:
    """How often a run may be launched again, and what for."""

    def __init__(self, max_restarts: int, faults: FaultRecord, *, diagnosis: Path) -> None:
        """Take the budget (`cluster.max_run_restarts`), what is told of every restart, and the file of standstills."""
        self._max_restarts = max_restarts
        self._faults = faults
        self._diagnosis = diagnosis
        self._steps: list[int] = []

    @property
    def num_restarts(self) -> int:
        """Restarts so far."""
        return len(self._steps)

    def spend(self, cause: RestartFromCheckpoint, *, step: int) -> None:
        """Count one restart, which goes on after `step` finished steps.

        Raises:
            RunFailed: the budget is used up; the message has all faults by actor.
        """
        left = self._max_restarts - self.num_restarts - 1
        if left < 0:
            raise RunFailed(f"{cause.reason}; {self._summary(step)}") from cause
        self._steps.append(step)
        self._faults.add(
            part=cause.part, error=cause.reason, action="restarting the run", from_step=step, restarts_left=left
        )

    def _summary(self, step: int) -> str:
        read = f"{self._diagnosis} and the logs in logs/" if self._diagnosis.is_file() else "the logs in logs/"
        stuck = " without a new checkpoint in between" if self._steps and self._steps[0] == step else ""
        return (
            f"it was launched again {self.num_restarts} times{stuck} (cluster.max_run_restarts={self._max_restarts}); "
            f"{self._faults.summary()}; read {read}, remove the cause, then go on with --resume"
        )
