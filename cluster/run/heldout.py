"""Held-out accuracy: one sampled answer to each question, by the lengths of each phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.roles import Rollouts
from cluster.run.group_statistics import GroupStatistics
from cluster.run.progress import Accuracy
from curriculum.metric import Metrics
from curriculum.task import Task


class HeldOut:
    """Questions that are never trained on."""

    def __init__(self, config: RunConfig, tasks: Mapping[str, Sequence[Task]], rollouts: Rollouts) -> None:
        """Take the questions by the name of the phase that admits their length; there may be none."""
        self._config = config
        self._tasks = tasks
        self._rollouts = rollouts

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    async def accuracy(self) -> Accuracy:
        """Return the accuracy under the weights in the engines; an answer without a known reward counts as wrong."""
        return {name: await self._accuracy_of(name, tasks) for name, tasks in self._tasks.items()}

    def metrics(self, accuracy: Accuracy) -> Metrics:
        """Return the metrics of the accuracies by length: their mean over all questions."""
        total = sum(len(tasks) for tasks in self._tasks.values())
        return {"heldout/accuracy": sum(accuracy[name] * len(tasks) for name, tasks in self._tasks.items()) / total}

    async def _accuracy_of(self, name: str, tasks: Sequence[Task]) -> float:
        phase = next(phase for phase in self._config.curriculum.phases if phase.name == name)
        groups = await self._rollouts.answer(tasks, phase_settings.heldout_sampling(self._config, phase))
        known = GroupStatistics(groups).accuracy
        answered = sum(len(group.known_accuracies) for group in groups)
        return (known or 0.0) * answered / len(tasks)
