"""The loop: warm-up SFT, then curriculum-guided phases of reinforcement learning.

One step of a phase: train on the slices of a batch as their groups are scored, update, send the new weights, let the
curriculum decide. With `rollout.max_policy_lag = 0` a batch is sampled under the weights that the step before it
produced; with k > 0 groups are sampled without a break, under weights that are at most k updates older than those they
train, and new weights travel to the engines while the learner begins the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from cluster.batches.bounded_lag import BoundedLagSource
from cluster.batches.on_policy import OnPolicySource
from cluster.batches.source import BatchOrder, BatchSource, Collected
from cluster.group import ScoredGroup, assign_advantages
from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.roles import Curriculum, Learner, Rollouts, SyncReport
from cluster.run.group_statistics import GroupStatistics
from cluster.run.journal import Journal
from cluster.run.metrics import sft_metrics, step_metrics
from cluster.run.progress import Accuracy, Progress, StageProgress
from cluster.run.step_clock import Part, StepClock, StepSeconds
from cluster.weights.sync import WeightSync
from curriculum.config import PhaseConfig
from curriculum.errors import RunFailed, UserError
from curriculum.task import Task
from curriculum.transition import CurriculumReport, EndReason, PhaseState
from learner.advantages import masks_negatives
from learner.reports import StepReport
from learner.schedule import learning_rate_at
from learner.sft import DemonstrationBatches

WARM_UP = "sft"
OUTAGE_PAUSE_S = 5.0
"""Pause before a step that found the judge away samples again."""


class Interrupted(UserError):
    """The run was asked to stop; everything up to the last finished step can be saved."""

    exit_status = 130

    def __str__(self) -> str:
        return "stopped; go on with --resume and the run folder"


class JudgeLost(RunFailed):
    """The judge has been away too long; everything up to the last finished step has been saved."""


class PhaseFruitless(RunFailed):
    """Nothing in a phase could be trained on, and the recipe says to stop then; the run has been saved."""


class TrainingLoop:
    """Runs the recipe from wherever `progress` stands.

    Consumes: scored groups.  Waits for: a batch, then the learner.  Unblocked by: `stop`, at once while it waits for a
    batch, otherwise when the step is done.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        curriculum: Curriculum | None,
        rollouts: Rollouts,
        learner: Learner,
        weights: WeightSync,
        demonstrations: DemonstrationBatches | None,
        heldout: Mapping[str, Sequence[Task]],
        journal: Journal,
        progress: Progress,
        stop: asyncio.Event,
    ) -> None:
        self._config = config
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._batches = None if curriculum is None else _batch_source(config, curriculum, rollouts)
        self._learner = learner
        self._demonstrations = demonstrations
        self._heldout = heldout
        self._journal = journal
        self._progress = progress
        self._stop = stop
        self._curriculum_state: dict[str, Any] | None = None
        self._weights = weights
        weights.on_delivered = self._weights_delivered

    async def run(self) -> None:
        """The whole recipe; returns when the last stage is done.

        Raises:
            Interrupted: `stop` was set; the last finished step has been checkpointed.
            JudgeLost: the judge stayed away too long; likewise.
            PhaseFruitless: nothing could be trained on and `curriculum.after_fruitless` says stop; likewise.
        """
        try:
            await self._remember()
            await self._measure_base()
            await self._warm_up()
            await self._reinforce()
            await self._weights.settle()
        except (Interrupted, JudgeLost, PhaseFruitless):
            await self._checkpoint()
            raise
        finally:
            await self._weights.close()
            if self._batches is not None:
                await self._batches.close()

    # ---- warm-up

    async def _warm_up(self) -> None:
        batches = self._demonstrations
        if batches is None or any(stage.name == WARM_UP for stage in self._progress.finished_stages):
            return
        if self._progress.stage is None:
            await self._learner.start_stage(WARM_UP)
            self._open_stage(WARM_UP, kind="sft")
        stage = self._stage
        while stage.steps < len(batches):
            self._check_stop()
            await self._sft_step(stage, batches)
        if self._curriculum is not None:
            await self._send_weights()
        stage.end_reason = "steps"
        await self._close_stage()

    async def _sft_step(self, stage: StageProgress, batches: DemonstrationBatches) -> None:
        sft = self._config.sft
        learning_rate = learning_rate_at(
            stage.steps,
            len(batches),
            peak=sft.learning_rate,
            warmup_steps=sft.warmup_steps,
            schedule=sft.schedule,
            floor=sft.learning_rate_floor,
        )
        clock = StepClock()
        report = await self._learner.sft_step(batches[stage.steps], learning_rate)
        seconds = StepSeconds(step_s=clock.seconds.step_s)
        self._journal.step(self._progress, stage, sft_metrics(report, seconds), total_steps=len(batches))
        await self._finish_step(stage, seconds.step_s)

    # ---- reinforcement learning

    async def _reinforce(self) -> None:
        if self._curriculum is None:
            return
        while True:
            self._check_stop()
            state = await self._curriculum.phase_state()
            if self._progress.stage and (state.finished or state.name != self._progress.stage.name):
                await self._close_stage()
            if state.finished:
                return
            if self._progress.stage is None:
                await self._open_phase(state)
            await self._train_step(self._stage, state)

    async def _open_phase(self, state: PhaseState) -> None:
        if not any(stage.kind == "rl" for stage in self._progress.finished_stages):
            await self._learner.start_stage("rl")
        self._open_stage(state.name, kind="rl")

    async def _train_step(self, stage: StageProgress, state: PhaseState) -> None:
        clock = StepClock()
        phase = self._config.curriculum.phases[state.phase]
        order = self._order(phase, state)
        collected = await self._accumulate_judged_batch(order, clock)
        report = None
        if collected.batch:
            with clock.waiting_for(Part.LEARNER):
                report = await self._learner.update(phase_settings.learning_rate(self._config, phase, state.num_steps))
            with clock.waiting_for(Part.SYNC):
                await self._send_weights()
        seconds = clock.seconds
        summary = await self._finish_curriculum_step(collected)
        self._progress.ledger.add(collected.outcome_counts)
        metrics = step_metrics(
            report=report,
            groups=GroupStatistics(collected.sampled, collected.batch, version=order.version),
            batches=self._required_batches,
            rollouts=self._rollouts,
            progress=self._progress,
            curriculum=summary,
            sync=self._weights.last if report else None,
            seconds=seconds,
        )
        stage.count(collected.sampled, num_trained=len(collected.batch))
        self._journal.step(self._progress, stage, metrics, total_steps=phase_settings.expected_steps(phase))
        await self._journal.trajectories(self._progress.step, collected.sampled)
        if summary.transition:
            stage.end_reason = str(summary.transition.reason)
            self._journal.transition(summary.transition)
        self._hear_entropy(report)
        await self._finish_step(stage, clock.seconds.step_s)
        self._check_fruitless(stage)

    async def _accumulate_judged_batch(self, order: BatchOrder, clock: StepClock) -> Collected:
        """The next batch, in the learner; a step that only the absence of the judge left empty waits for it, so that an
        outage neither ends a phase nor uses up its steps.

        Raises:
            JudgeLost: the judge stayed away for `reward.max_outage_s`.
        """
        collected = Collected()
        deadline = time.monotonic() + self._config.reward.max_outage_s
        while True:
            found = await self._accumulate_batch(order, clock)
            self._journal.judge_events(await self._rollouts.judge_events())
            collected.extend(found)
            if found.batch or not GroupStatistics(found.sampled).judge_is_away:
                return collected
            if time.monotonic() >= deadline:
                raise JudgeLost(
                    f"the judge gave no verdict for reward.max_outage_s={self._config.reward.max_outage_s:g} s and "
                    "without it no group can be trained on; mend the judge, then go on with --resume"
                )
            self._journal.event("waiting_for_judge", step=self._progress.step)
            await self._unless_stopped(asyncio.sleep(min(OUTAGE_PAUSE_S, self._config.reward.max_outage_s)))

    async def _accumulate_batch(self, order: BatchOrder, clock: StepClock) -> Collected:
        """Hands every slice to the learner as soon as it is there; the next one is sampled meanwhile."""
        batches = self._required_batches
        while True:
            with clock.waiting_for(Part.ROLLOUT):
                groups = await self._unless_stopped(batches.next_slice(order))
            if not groups:
                return batches.close_batch()
            self._assign_advantages(groups)
            with clock.waiting_for(Part.LEARNER):
                await self._learner.accumulate(groups, batch_groups=self._config.groups_per_batch)

    def _assign_advantages(self, groups: Sequence[ScoredGroup]) -> None:
        scale = self._config.learner.advantage_scale
        assign_advantages(groups, scale, mask_negatives=self._progress.negatives_masked)

    def _hear_entropy(self, report: StepReport | None) -> None:
        """Let the entropy control decide from a step whether the next one masks negative advantages."""
        control = self._config.learner.entropy_control
        if control is not None and report is not None:
            self._progress.negatives_masked = masks_negatives(
                self._progress.negatives_masked, report.entropy, high=control.high, low=control.low
            )

    async def _finish_curriculum_step(self, collected: Collected) -> CurriculumReport:
        """Tells the curriculum; what a phase leaves unused when it ends is booked with its last step."""
        report = await self._required_batches.finish_step(
            self._progress.step, num_trained_groups=len(collected.batch), version=self._progress.policy_version
        )
        if report.transition:
            collected.outcome_counts += await self._required_batches.end_phase()
        return report

    # ---- held-out accuracy

    async def _measure_base(self) -> None:
        if self._heldout and self._progress.base_accuracy is None:
            self._progress.base_accuracy = await self._evaluate("base")

    async def _evaluate(self, after: str) -> Accuracy:
        """Sampled accuracy by length under the newest weights; an answer without a known reward counts as wrong."""
        await self._weights.settle()
        accuracy: Accuracy = {}
        for name, tasks in self._heldout.items():
            phase = next(phase for phase in self._config.curriculum.phases if phase.name == name)
            groups = await self._unless_stopped(
                self._rollouts.answer(tasks, phase_settings.heldout_sampling(self._config, phase))
            )
            known = GroupStatistics(groups).accuracy
            answered = sum(len(group.known_accuracies) for group in groups)
            accuracy[name] = (known or 0.0) * answered / len(tasks)
        self._journal.judge_events(await self._rollouts.judge_events())
        self._journal.evaluation(after, accuracy)
        return accuracy

    # ---- weights

    async def _send_weights(self) -> None:
        self._progress.policy_version += 1
        await self._weights.send(self._progress.policy_version)

    async def _weights_delivered(self, report: SyncReport) -> None:
        self._journal.sync(report)
        await self._required_batches.weights_delivered(report.version)

    # ---- stages, steps, checkpoints

    def _open_stage(self, name: str, kind: str) -> None:
        self._progress.stage = StageProgress(name=name, kind=kind, accuracy_before=self._progress.last_accuracy)
        self._journal.stage_opened(self._progress.stage)

    async def _close_stage(self) -> None:
        stage = self._stage
        started = time.monotonic()
        stage.accuracy_after = await self._evaluate(stage.name) if self._heldout else None
        stage.wall_seconds += time.monotonic() - started
        self._progress.finished_stages.append(stage)
        self._progress.stage = None
        self._journal.stage_closed(stage)
        await self._checkpoint()

    async def _finish_step(self, stage: StageProgress, seconds: float) -> None:
        stage.steps += 1
        stage.wall_seconds += seconds
        self._progress.step += 1
        await self._remember()
        if self._progress.step % self._config.checkpoint.every_steps == 0:
            await self._checkpoint()

    async def _remember(self) -> None:
        """Keeps the state of the curriculum at the end of a step, where nothing is half done."""
        self._curriculum_state = await self._curriculum.state_dict() if self._curriculum else None

    async def _checkpoint(self) -> None:
        await self._journal.checkpoint(self._progress, self._curriculum_state, self._learner)

    # ---- small things

    @property
    def _stage(self) -> StageProgress:
        assert self._progress.stage is not None, "no stage is open"
        return self._progress.stage

    @property
    def _required_batches(self) -> BatchSource:
        assert self._batches is not None, "reinforcement learning without a curriculum"
        return self._batches

    def _order(self, phase: PhaseConfig, state: PhaseState) -> BatchOrder:
        steps = phase_settings.expected_steps(phase)
        return BatchOrder(
            sampling=phase_settings.sampling(self._config, phase),
            version=self._progress.policy_version,
            remaining_steps=None if steps is None else steps - state.num_steps,
        )

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    def _check_fruitless(self, stage: StageProgress) -> None:
        """Raises if the phase has just been closed for want of anything to train on and the recipe stops there."""
        if stage.end_reason == EndReason.FRUITLESS and self._config.curriculum.after_fruitless == "stop":
            raise PhaseFruitless(
                f"{stage.name} trained on nothing in {self._config.curriculum.max_fruitless_steps} steps in a row "
                "(curriculum.max_fruitless_steps): no group had answers of different worth; change its data, or go on "
                "with the next phase with --resume"
            )

    async def _unless_stopped(self, work: Any) -> Any:
        """Awaits `work`, or cancels it as soon as the run is asked to stop or the weights under way are lost."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        failure = asyncio.ensure_future(self._weights.failure())
        try:
            await asyncio.wait({task, stop, failure}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not task.done():
                raise Interrupted
            if failure.done():
                failure.result()
            return task.result()
        finally:
            for future in (task, stop, failure):
                if not future.done():
                    future.cancel()


def _batch_source(config: RunConfig, curriculum: Curriculum, rollouts: Rollouts) -> BatchSource:
    """Strictly on-policy batches, or a source with a bounded lag."""
    algorithm = config.learner.algorithm
    dynamic_sampling = algorithm.type == "dapo"
    common: dict[str, Any] = {
        "batch_size": config.groups_per_batch,
        "slice_size": ceil(config.groups_per_batch / config.learner.slices),
        "max_rounds": config.curriculum.max_sampling_rounds if dynamic_sampling else 1,
        "dynamic_sampling": dynamic_sampling,
    }
    if config.rollout.max_policy_lag == 0:
        return OnPolicySource(curriculum, rollouts, **common)
    return BoundedLagSource(curriculum, rollouts, max_policy_lag=config.rollout.max_policy_lag, **common)
