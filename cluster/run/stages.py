"""Stages of a run: opened, counted step by step, measured on held-out questions, closed, and saved."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, Protocol

from cluster.recipe.config import CheckpointConfig
from cluster.roles import Curriculum, Learner
from cluster.run.guards import Guards
from cluster.run.heldout_statistics import Evaluation
from cluster.run.journal import Journal
from cluster.run.progress import Best, Progress, StageProgress
from cluster.run.stopping import PhaseFruitless, StopSignal
from curriculum.config import CurriculumConfig
from curriculum.metric import Metrics
from curriculum.transition import EndReason


class Evaluate(Protocol):
    """Measures the held-out questions under the newest weights; None where nothing is held out."""

    def __call__(self, stage: str, *, ends_stage: bool) -> Awaitable[Evaluation | None]:
        """Measure them in or after a stage."""
        ...


class Stages:
    """The warm-up and the phases, as far as they have come; a checkpoint is taken between two steps only."""

    def __init__(
        self,
        progress: Progress,
        journal: Journal,
        learner: Learner,
        curriculum: Curriculum | None,
        *,
        checkpoint: CheckpointConfig,
        evaluate_every: int,
        evaluate: Evaluate,
        guards: Guards,
        stop: StopSignal,
    ) -> None:
        """Take the position of the run and who is saved with it.

        Args:
            progress: advanced by every step.
            journal: writes everything down.
            learner: saved in every checkpoint.
            curriculum: saved in its state after the last finished step; None in a run of a warm-up alone.
            checkpoint: when the run is saved, and what is kept.
            evaluate_every: steps from one evaluation to the next; 0 for the ends of stages only.
            evaluate: measures the held-out questions.
            guards: told of every checkpoint.
            stop: ends the writing of a model, which a resumed run makes up.
        """
        self._progress = progress
        self._journal = journal
        self._learner = learner
        self._curriculum = curriculum
        self._checkpoint = checkpoint
        self._evaluate_every = evaluate_every
        self._evaluate = evaluate
        self._guards = guards
        self._stop = stop
        self._curriculum_state: dict[str, Any] | None = None
        self._saved: object = None
        """What the latest checkpoint holds of the run."""
        self.is_between_steps = False
        """Whether learner and progress are still those of `remember_curriculum`, so that they may be saved together."""

    @property
    def current(self) -> StageProgress:
        """The stage that is open."""
        assert self._progress.stage is not None, "no stage is open"
        return self._progress.stage

    @property
    def is_open(self) -> bool:
        """Whether a stage is open."""
        return self._progress.stage is not None

    def has_finished(self, kind: str) -> bool:
        """Return whether a stage of that kind, `sft` or `rl`, is over."""
        return any(stage.kind == kind for stage in self._progress.finished_stages)

    async def begin(self) -> None:
        """Start from where the run stands: make up models and evaluations that an earlier process was killed before."""
        await self.remember_curriculum()
        if self._progress.step:
            await self._export()
        if self._progress.base_heldout is None:
            self._progress.base_heldout = self._progress.heldout = await self._evaluate("base", ends_stage=True)
        if self.is_open:
            await self.evaluate_if_due()

    def open(self, name: str, *, kind: str) -> None:
        """Begin a stage."""
        self._progress.stage = StageProgress(name=name, kind=kind)
        self._journal.stage_opened(self._progress.stage)

    async def finish_step(self, seconds: float) -> None:
        """Count a step of the stage; measure the held-out questions and save the run if it is time or the best step."""
        self.current.steps += 1
        self.current.wall_seconds += seconds
        self._progress.step += 1
        await self.remember_curriculum()
        await self.evaluate_if_due()
        is_best = self._progress.best is not None and self._progress.best.step == self._progress.step
        if is_best or self._progress.step % self._checkpoint.every_steps == 0:
            await self.save()
        if is_best:
            await self._export()

    def evaluated(self, heldout: Metrics) -> None:
        """Note what a held-out evaluation found after the last finished step; the best one is kept, with its model."""
        key, best, step = self._checkpoint.keep.best, self._progress.best, self._progress.step
        if key is None or key not in heldout or step == 0:
            return
        if best is None or best.metric != key or heldout[key] > best.value:
            self._progress.best = Best(metric=key, step=step, value=heldout[key])

    async def evaluate_if_due(self) -> None:
        """Measure the held-out questions if so many steps are over, unless it is done, or the stage ends here."""
        latest, step = self._progress.heldout, self._progress.step
        if not self._evaluate_every or step % self._evaluate_every or self.current.end_reason:
            return
        if latest is None or latest.step != step:
            await self._measure(ends_stage=False)

    async def close(self) -> None:
        """End the stage: measure the held-out questions, save the run, and export its model."""
        stage = self.current
        stage.heldout = await self._measure(ends_stage=True)
        self._progress.finished_stages.append(stage)
        self._progress.stage = None
        self._journal.stage_closed(stage)
        await self.save()
        await self._export()

    async def remember_curriculum(self) -> None:
        """Keep the state of the curriculum as it is now, between two steps; it is what a checkpoint holds."""
        self._curriculum_state = await self._curriculum.state_dict() if self._curriculum else None
        self.is_between_steps = True

    async def save(self) -> None:
        """Write a checkpoint of the run after its last finished step, unless the latest one holds just that."""
        if (self._progress.state_dict(), self._curriculum_state) == self._saved:
            return
        self._guards.saved(self._progress.step)
        await self._write()

    async def roll_back(self, step: int) -> None:
        """Give the learner, and nothing else, what the checkpoint after `step` holds: weights and optimizer."""
        await self._journal.roll_back(step, self._learner, stage=self._progress.learner_stage)

    async def save_rolled_back(self) -> None:
        """Write a checkpoint in place of one that a kill would otherwise go on from; its weights are known as good."""
        self._guards.rolled_back(self._progress.step)
        if self._progress.best is not None and self._progress.best.step == self._progress.step:
            self._progress.best = None  # its checkpoint is the one that is replaced
        await self.remember_curriculum()
        await self._write()

    async def _measure(self, *, ends_stage: bool) -> Evaluation | None:
        started = time.monotonic()
        found = await self._evaluate(self.current.name, ends_stage=ends_stage)
        self.current.wall_seconds += time.monotonic() - started
        self._progress.heldout = found or self._progress.heldout
        return found

    async def _export(self) -> None:
        await self._stop.unless_stopped(self._journal.export_models(self._progress))

    async def _write(self) -> None:
        state = (self._progress.state_dict(), self._curriculum_state)
        await self._journal.checkpoint(self._progress, self._curriculum_state, self._learner)
        self._saved = state


def check_fruitless(stage: StageProgress, curriculum: CurriculumConfig) -> None:
    """Check the phase of a step that is over.

    Raises:
        PhaseFruitless: it has just been closed because nothing could be trained on, and the recipe stops there.
    """
    if stage.end_reason == EndReason.FRUITLESS and curriculum.after_fruitless == "stop":
        raise PhaseFruitless(
            f"{stage.name} trained on nothing in {curriculum.max_fruitless_steps} steps in a row "
            "(curriculum.max_fruitless_steps): no group had answers with different rewards; go on with the next "
            "phase with --resume, or start a new run with easier data"
        )
