"""What cannot be repaired in place: the run is launched again from its last whole checkpoint, within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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


class RestartBudget:
    """How often a run may be launched again, and what for."""

    def __init__(self, max_restarts: int, on_fault: Callable[..., Any]) -> None:
        """Take the budget (`cluster.max_run_restarts`), and what is called with every restart as an event `fault`."""
        self._max_restarts = max_restarts
        self._on_fault = on_fault
        self._causes: Counter[str] = Counter()
        self._steps: list[int] = []

    @property
    def num_restarts(self) -> int:
        """Restarts so far."""
        return len(self._steps)

    def spend(self, cause: RestartFromCheckpoint, *, step: int) -> None:
        """Count one restart, which goes on after `step` finished steps.

        Raises:
            RunFailed: the budget is used up; the message has the causes by part.
        """
        self._causes[cause.part] += 1
        left = self._max_restarts - self.num_restarts - 1
        if left < 0:
            raise RunFailed(f"{cause.reason}; {self._summary(step)}") from cause
        self._steps.append(step)
        self._on_fault(
            part=cause.part, error=cause.reason, action="restarting the run", from_step=step, restarts_left=left
        )

    def _summary(self, step: int) -> str:
        causes = ", ".join(f"{part} {count}" for part, count in self._causes.most_common())
        stuck = " without a new checkpoint in between" if self._steps and self._steps[0] == step else ""
        return (
            f"it was launched again {self.num_restarts} times{stuck} (cluster.max_run_restarts={self._max_restarts}; "
            f"failures: {causes}): read the logs of the actors in logs/, remove the cause, then go on with --resume"
        )
