"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from curriculum.metric import Metric


class Part(StrEnum):
    """What the loop waits for."""

    ROLLOUT = "rollout"
    LEARNER = "learner"
    SYNC = "sync"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of a step; the parts are those in which the loop waited, what went on behind them is not counted.

    The warm-up has no parts: the learner is all there is to wait for.
    """

    rollout_s: Annotated[float | None, Metric("time/rollout_s", "s")] = None
    """The learner waits for groups: sampling and scoring, less what happened while it trained.

    The larger part with long documents; close to 0 with a policy lag where the engines keep up."""
    learner_s: Annotated[float | None, Metric("time/learner_s", "s")] = None
    """The slices of the batch and the update."""
    sync_s: Annotated[float | None, Metric("time/sync_s", "s")] = None
    """The loop waits for a weight update: all of it with `rollout.max_policy_lag=0`; above 0 the gathering, and what is
    left of the delivery of the update before."""
    step_s: Annotated[float, Metric("time/step_s", "s")]
    """The whole step; files and held-out questions are not part of it."""


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
