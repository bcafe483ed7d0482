"""Phases: which one a task belongs to, and when the running one is over."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from curriculum.config import FixedEpochs, FixedSteps, PhaseEnd, Plateau
from curriculum.transition import EndReason

PLATEAU_WINDOW = 10
"""Scored steps in the moving average of the accuracy."""
MIN_IMPROVEMENT = 0.01
"""An average must exceed the best one so far by more than this to count as progress."""


def assign_phase(num_tokens: int, limits: Sequence[int]) -> int | None:
    """Return the index k with L_{k-1} < num_tokens <= L_k (paper Eq. 9; L_{-1} = 0); None beyond the last limit.

    Args:
        num_tokens: Length of the whole prompt in tokens; positive.
        limits: L_0 < L_1 < ... in tokens.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: a prompt has at least one token")
    phase = bisect_left(limits, num_tokens)
    return phase if phase < len(limits) else None


class PhaseClock:
    """A counter of the steps of one phase that tells when it is over; a pure state machine.

    Every finished step counts, fruitless ones included, so that a phase always ends. A plateau is judged on the mean
    of the last `PLATEAU_WINDOW` scored steps, from the moment there are so many: the mean makes progress when it
    exceeds the best one so far by more than `MIN_IMPROVEMENT` (the best one moves only then, so slow progress adds
    up), and `patience` steps in a row without progress are a plateau. A step without accuracy is neither: it tells
    nothing about the policy.

    Args:
        end: The rule of the phase.
        max_fruitless_steps: Steps in a row without a trained group that end the phase whatever its rule.
        num_tasks: Tasks of the phase.
    """

    def __init__(self, *, end: PhaseEnd, max_fruitless_steps: int, num_tasks: int) -> None:
        self._end = end
        self._max_fruitless_steps = max_fruitless_steps
        self._num_tasks = num_tasks
        self.num_steps = 0
        self._num_trained = 0
        self._num_fruitless = 0
        self._recent: list[float] = []
        self._best: float | None = None
        self._num_stale = 0

    def advance(self, *, accuracy: float | None, num_trained_groups: int, epochs: float) -> EndReason | None:
        """Count one finished step; return why the phase is over, or None.

        Args:
            accuracy: Mean accuracy of the step's fresh groups; None if too few were scored.
            num_trained_groups: Groups the learner trained on.
            epochs: Passes over the tasks of the phase since its beginning.
        """
        self.num_steps += 1
        self._num_trained += num_trained_groups
        self._num_fruitless = 0 if num_trained_groups else self._num_fruitless + 1
        reason = self._end_by_rule(accuracy, epochs)
        if reason is None and self._num_fruitless >= self._max_fruitless_steps:
            return EndReason.FRUITLESS
        return reason

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "num_steps": self.num_steps,
            "num_trained": self._num_trained,
            "num_fruitless": self._num_fruitless,
            "recent": list(self._recent),
            "best": self._best,
            "num_stale": self._num_stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same phase."""
        self.num_steps = state["num_steps"]
        self._num_trained = state["num_trained"]
        self._num_fruitless = state["num_fruitless"]
        self._recent = list(state["recent"])
        self._best = state["best"]
        self._num_stale = state["num_stale"]

    def _end_by_rule(self, accuracy: float | None, epochs: float) -> EndReason | None:
        match self._end:
            case FixedSteps(steps=steps):
                return EndReason.STEPS if self.num_steps >= steps else None
            case FixedEpochs(epochs=wanted, of=counted):
                done = epochs if counted == "sampled" else self._num_trained / self._num_tasks
                return EndReason.EPOCHS if done >= wanted else None
            case Plateau() as rule:
                return self._end_by_plateau(rule, accuracy)

    def _end_by_plateau(self, rule: Plateau, accuracy: float | None) -> EndReason | None:
        if accuracy is not None:
            self._recent = [*self._recent, accuracy][-PLATEAU_WINDOW:]
            if len(self._recent) == PLATEAU_WINDOW:
                self._judge_progress(fsum(self._recent) / PLATEAU_WINDOW)
        if self.num_steps >= rule.max_steps:
            return EndReason.MAX_STEPS
        return EndReason.PLATEAU if self._num_stale >= rule.patience else None

    def _judge_progress(self, smoothed: float) -> None:
        if self._best is None or smoothed > self._best + MIN_IMPROVEMENT:
            self._best, self._num_stale = smoothed, 0
        else:
            self._num_stale += 1
