"""Held-out questions, asked under the weights in the engines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import HeldOutSet, TasksByPhase
from cluster.roles import Rollouts
from cluster.run.heldout_statistics import HeldOutGroup, HeldOutStatistics
from curriculum.controls import Control
from curriculum.task import Task


class HeldOut:
    """Asks the questions that are never trained on."""

    def __init__(self, config: RunConfig, questions: HeldOutSet, rollouts: Rollouts) -> None:
        """Take the questions, of which there may be none, and who answers them."""
        self._config = config
        self._questions = questions
        self._rollouts = rollouts

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._questions.tasks)

    async def ask(self, *, with_controls: bool) -> HeldOutStatistics:
        """Ask every question, under the controls of the recipe as well if they are wanted; return what came of it."""
        started = time.monotonic()
        groups = await self._ask_all(self._questions.tasks, None)
        for control, tasks in self._questions.under.items() if with_controls else ():
            groups += await self._ask_all(tasks, control)
        return HeldOutStatistics(
            groups,
            num_samples=self._config.evaluation.num_samples,
            seed=self._config.seed,
            seconds=time.monotonic() - started,
        )

    async def _ask_all(self, tasks: TasksByPhase, control: Control | None) -> list[HeldOutGroup]:
        return [group for name in tasks for group in await self._ask(name, tasks[name], control)]

    async def _ask(self, name: str, tasks: Sequence[Task], control: Control | None) -> list[HeldOutGroup]:
        phase = next(phase for phase in self._config.curriculum.phases if phase.name == name)
        groups = await self._rollouts.answer(tasks, phase_settings.heldout_sampling(self._config, phase))
        by_task = {group.task_id: group for group in groups}
        return [
            HeldOutGroup(task=task, phase=name, control=control, scored=by_task.get(task.task_id)) for task in tasks
        ]
