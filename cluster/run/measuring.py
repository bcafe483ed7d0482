"""Difficulty that is measured: groups that are sampled only to learn how hard tasks are, before replay draws them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.roles import Curriculum, Rollouts
from cluster.run.journal import Journal
from curriculum.task import Task
from curriculum.transition import PhaseState

SAY_EVERY_S = 10.0
"""Time between two lines that say how far it is."""


class Measuring:
    """Asks the policy of the moment about every task that the curriculum wants to be measured.

    Consumes: `PhaseState.to_measure`.  Waits for: the slowest answer of each batch.  Unblocked by: every batch, which
    is recorded and remembered, so that a run that stops in between goes on with the rest.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: Sequence[Task],
        curriculum: Curriculum | None,
        rollouts: Rollouts,
        journal: Journal,
        remember: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the tasks of the run, and `Stages.remember_curriculum`."""
        self._config = config
        self._tasks = {task.task_id: task for task in tasks}
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._journal = journal
        self._remember = remember

    async def catch_up(self) -> None:
        """Measure what is to be measured; return at once where that is nothing."""
        curriculum = self._curriculum
        if curriculum is None or not (state := await curriculum.phase_state()).to_measure:
            return
        total, num_done, said = len(state.to_measure), 0, time.monotonic()
        measured: list[float] = []
        self._journal.measuring(0, total)
        for phase, tasks in self._batches(state):
            known = await self._measure(tasks, phase)
            await curriculum.record_measured([task.task_id for task in tasks], known)
            await self._remember()
            measured += known.values()
            num_done += len(tasks)
            if time.monotonic() - said >= SAY_EVERY_S:
                self._journal.measuring(num_done, total)
                said = time.monotonic()
        self._journal.measured(total, measured)

    def _batches(self, state: PhaseState) -> list[tuple[int, list[Task]]]:
        """Return (phase whose limits hold, tasks): a task is answered as where it is trained on next."""
        by_phase: dict[int, list[Task]] = {}
        for task_id in state.to_measure:
            task = self._tasks[task_id]
            by_phase.setdefault(max(task.phase, state.phase), []).append(task)
        size = self._config.groups_per_batch
        return [
            (phase, tasks[start : start + size])
            for phase, tasks in by_phase.items()
            for start in range(0, len(tasks), size)
        ]

    async def _measure(self, tasks: Sequence[Task], phase: int) -> dict[str, float]:
        """Sample one group of each task as the phase would; return the mean accuracies that are known."""
        sampling = phase_settings.sampling(self._config, self._config.curriculum.phases[phase])
        groups = await self._rollouts.answer(tasks, sampling)
        means = {group.task_id: group.outcome.mean_accuracy for group in groups}
        return {task_id: mean for task_id, mean in means.items() if mean is not None}
