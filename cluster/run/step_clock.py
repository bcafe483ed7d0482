"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What the loop waits for."""

    ROLLOUT = "rollout"
    LEARNER = "learner"
    SYNC = "sync"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of a step; the parts are those in which the loop waited, what went on behind them is not counted."""

    rollout_s: float
    learner_s: float
    sync_s: float
    step_s: float


class StepClock:
    """Runs from its creation."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._spent = dict.fromkeys(Part, 0.0)

    @contextmanager
    def waiting_for(self, part: Part) -> Iterator[None]:
        """Books the time inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._spent[part] += time.monotonic() - started

    @property
    def seconds(self) -> StepSeconds:
        """So far."""
        return StepSeconds(
            rollout_s=self._spent[Part.ROLLOUT],
            learner_s=self._spent[Part.LEARNER],
            sync_s=self._spent[Part.SYNC],
            step_s=time.monotonic() - self._started,
        )
