"""Stages of a run: opened, counted step by step, measured on held-out questions, closed, and saved."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, Protocol

from cluster.roles import Curriculum, Learner
from cluster.run.guards import Guards
from cluster.run.heldout_statistics import Evaluation
from cluster.run.journal import Journal
from cluster.run.progress import Progress, StageProgress
from cluster.run.stopping import PhaseFruitless
from curriculum.config import CurriculumConfig
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
        checkpoint_every: int,
        evaluate_every: int,
        evaluate: Evaluate,
        guards: Guards,
    ) -> None:
        """Take the position of the run and who is saved with it.

        Args:
            progress: advanced by every step.
            journal: writes everything down.
            learner: saved in every checkpoint.
            curriculum: saved in its state after the last finished step; None in a run of a warm-up alone.
            checkpoint_every: steps from one checkpoint to the next.
            evaluate_every: steps from one evaluation to the next; 0 for the ends of stages only.
            evaluate: measures the held-out questions.
            guards: told of every checkpoint.
        """
        self._progress = progress
        self._journal = journal
        self._learner = learner
        self._curriculum = curriculum
        self._checkpoint_every = checkpoint_every
        self._evaluate_every = evaluate_every
        self._evaluate = evaluate
        self._guards = guards
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
        """Measure the held-out questions before the first stage, or what was due when the run was stopped."""
        await self.remember_curriculum()
        if self._progress.base_heldout is None:
            self._progress.base_heldout = self._progress.heldout = await self._evaluate("base", ends_stage=True)
        if self.is_open:
            await self.evaluate_if_due()

    def open(self, name: str, *, kind: str) -> None:
        """Begin a stage."""
        self._progress.stage = StageProgress(name=name, kind=kind)
        self._journal.stage_opened(self._progress.stage)

    async def finish_step(self, seconds: float) -> None:
        """Count a step of the stage; measure the held-out questions and save the run if it is time."""
        self.current.steps += 1
        self.current.wall_seconds += seconds
        self._progress.step += 1
        await self.remember_curriculum()
        await self.evaluate_if_due()
        if self._progress.step % self._checkpoint_every == 0:
            await self.save()

    async def evaluate_if_due(self) -> None:
        """Measure the held-out questions if so many steps are over, unless it is done, or the stage ends here."""
        latest, step = self._progress.heldout, self._progress.step
        if not self._evaluate_every or step % self._evaluate_every or self.current.end_reason:
            return
        if latest is None or latest.step != step:
            await self._measure(ends_stage=False)

    async def close(self) -> None:
        """End the stage: measure the held-out questions, and save the run."""
        stage = self.current
        stage.heldout = await self._measure(ends_stage=True)
        self._progress.finished_stages.append(stage)
        self._progress.stage = None
        self._journal.stage_closed(stage)
        await self.save()

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
        await self.remember_curriculum()
        await self._write()

    async def _measure(self, *, ends_stage: bool) -> Evaluation | None:
        started = time.monotonic()
        found = await self._evaluate(self.current.name, ends_stage=ends_stage)
        self.current.wall_seconds += time.monotonic() - started
        self._progress.heldout = found or self._progress.heldout
        return found

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
