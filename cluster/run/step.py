"""One training step while it goes on: what it is for, what came of it, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Annotated, Self, TypeVar

from cluster.batches.source import BatchOrder, Collected
from cluster.group import ScoredGroup
from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.roles import SyncReport
from cluster.run.group_statistics import GroupStatistics
from cluster.run.progress import Progress
from curriculum.metric import Metric
from curriculum.transition import CurriculumReport, PhaseState
from learner.reports import StepReport

_T = TypeVar("_T")


class Part(StrEnum):
    """What the loop waits for."""

    ROLLOUT = "rollout"
    LEARNER = "learner"
    SYNC = "sync"


class StepClock:
    """Seconds of a step. A part is the time that the loop waited for it; what went on meanwhile is not counted."""

    def __init__(self, parts: Iterable[Part] = (), *, now: Callable[[], float] = time.monotonic) -> None:
        """Start. Without `parts` only the whole step is timed, as in the warm-up, where the learner is all there is."""
        self._now = now
        self._started = now()
        self._waited = dict.fromkeys(parts, 0.0)

    async def wait(self, part: Part, work: Awaitable[_T]) -> _T:
        """Await `work` and count the time for `part`."""
        started = self._now()
        try:
            return await work
        finally:
            self._waited[part] += self._now() - started

    @property
    def rollout_s(self) -> Annotated[float | None, Metric("time/rollout_s", "s")]:
        """The learner waits for groups: sampling and scoring, less what happened while it trained.

        The larger part with long documents; close to 0 with a policy lag where the engines keep up.
        """
        return self._waited.get(Part.ROLLOUT)

    @property
    def learner_s(self) -> Annotated[float | None, Metric("time/learner_s", "s")]:
        """The slices of the batch and the update."""
        return self._waited.get(Part.LEARNER)

    @property
    def sync_s(self) -> Annotated[float | None, Metric("time/sync_s", "s")]:
        """The loop waits for a weight update.

        All of it with `rollout.max_policy_lag=0`; above 0 the gathering, and what is left of the delivery of the update
        before.
        """
        return self._waited.get(Part.SYNC)

    @property
    def step_s(self) -> Annotated[float, Metric("time/step_s", "s")]:
        """The whole step; files and held-out questions are not part of it."""
        return self._now() - self._started


class Step:
    """One training step of a phase."""

    def __init__(self, order: BatchOrder, *, learning_rate: float, total_steps: int | None) -> None:
        """Start the clock.

        Args:
            order: what the batch is for.
            learning_rate: of the updates of the step.
            total_steps: of the phase, as far as they are known.
        """
        self.order = order
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.clock = StepClock(Part)
        self.collected = Collected()
        self.learner: StepReport | None = None
        """What the learner reports; None where nothing was trained on, like `sync`."""
        self.sync: SyncReport | None = None
        """The latest weight update that is in all engines."""
        self.curriculum: CurriculumReport | None = None
        """What the curriculum made of the step; None until it has been told."""

    @classmethod
    def begin(cls, config: RunConfig, state: PhaseState, progress: Progress) -> Self:
        """Begin the next step of the running phase."""
        phase = config.curriculum.phases[state.phase]
        steps = phase_settings.expected_steps(phase)
        order = BatchOrder(
            sampling=phase_settings.sampling(config, phase),
            version=progress.policy_version,
            remaining_steps=None if steps is None else max(1, steps - state.num_steps),
        )
        learning_rate = phase_settings.learning_rate(config, state, progress.finished_rl_steps)
        return cls(order, learning_rate=learning_rate, total_steps=steps)

    @property
    def batch(self) -> list[ScoredGroup]:
        """The groups that are trained on."""
        return self.collected.batch

    @property
    def groups(self) -> GroupStatistics:
        """Statistics of all groups of the step, and of those of them that were trained on."""
        return GroupStatistics(self.collected.sampled, self.batch, version=self.order.version)
