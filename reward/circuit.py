"""The circuit breaker in front of a remote judge: after some failures in a row, no question waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_KEPT_EVENTS = 1_000
"""Events that wait for a reader; the oldest are dropped first."""


class CircuitState(StrEnum):
    """Whether questions reach the judge."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not; each one is unknown at once."""
    HALF_OPEN = "half_open"
    """One of them does, to find out whether the judge is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEvent:
    """The circuit of a judge changed its state."""

    judge: str
    """Name of the judge."""
    state: CircuitState
    """The new state."""
    unix_s: float
    """When, in seconds since 1970."""
    num_failures: int
    """Failed attempts in a row up to now."""
    num_refused: int
    """Attempts refused since the circuit was last closed."""
    reason: str
    """One short line that a person reads."""


class CircuitBreaker:
    """A counter of failures in a row that decides whether the next attempt is made.

    closed → open after `max_failures` in a row; open → half-open with the first attempt after `cooldown_s`;
    half-open → closed when that attempt succeeds, → open when it fails. A trial that never reports back is replaced
    by another one after `cooldown_s`. Not thread-safe: it lives in one event loop.
    """

    def __init__(
        self, name: str, *, max_failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._max_failures = max_failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._state = CircuitState.CLOSED
        self._num_failures = 0
        self._num_refused = 0
        self._next_trial_s = 0.0
        self._events: deque[JudgeEvent] = deque(maxlen=MAX_KEPT_EVENTS)

    @property
    def state(self) -> CircuitState:
        """Current state."""
        return self._state

    def admits(self) -> bool:
        """Return whether an attempt may be made now; if so, the caller must make it and report its outcome."""
        if self._state is CircuitState.CLOSED:
            return True
        if self._clock() < self._next_trial_s:
            self._num_refused += 1
            return False
        self._next_trial_s = self._clock() + self._cooldown_s
        self._enter(CircuitState.HALF_OPEN, "cooled down; one question tries the judge")
        return True

    def succeeded(self) -> None:
        """Record an attempt that was answered."""
        self._num_failures = 0
        self._enter(CircuitState.CLOSED, "the judge answers")
        self._num_refused = 0

    def failed(self, reason: str) -> None:
        """Record an attempt that failed."""
        self._num_failures += 1
        is_down = self._state is CircuitState.HALF_OPEN or self._num_failures >= self._max_failures
        if is_down and self._state is not CircuitState.OPEN:
            self._next_trial_s = self._clock() + self._cooldown_s
            self._enter(CircuitState.OPEN, reason)

    def drain_events(self) -> list[JudgeEvent]:
        """Return the changes since the last call, oldest first."""
        events = list(self._events)
        self._events.clear()
        return events

    def _enter(self, state: CircuitState, reason: str) -> None:
        if state is self._state:
            return
        self._state = state
        self._events.append(
            JudgeEvent(
                judge=self._name,
                state=state,
                unix_s=time.time(),
                num_failures=self._num_failures,
                num_refused=self._num_refused,
                reason=reason,
            )
        )
