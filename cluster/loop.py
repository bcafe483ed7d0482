"""The loop: warm-up SFT, then curriculum-guided phases of reinforcement learning. Read `_train_step` first.

With `rollout.max_policy_lag = 0` a batch is sampled under the weights that the step before it produced. With k > 0
groups are sampled without a break, under weights that are at most k updates older than those they train, and new
weights travel to the engines while the learner begins the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from math import ceil
from typing import Any

from cluster.batches.bounded_lag import BoundedLagSource
from cluster.batches.on_policy import OnPolicySource
from cluster.batches.source import BatchOrder, BatchSource
from cluster.group import ScoredGroup, assign_advantages
from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from cluster.roles import Curriculum, Learner, Rollouts, SyncReport
from cluster.run.group_statistics import GroupStatistics
from cluster.run.heldout import HeldOut
from cluster.run.journal import Journal
from cluster.run.metrics import sft_metrics, step_metrics
from cluster.run.progress import Accuracy, Progress
from cluster.run.stages import Stages
from cluster.run.step import Part, Step, StepClock
from cluster.run.stopping import Interrupted, StopSignal
from cluster.weights.sync import WeightSync
from curriculum.errors import RunFailed
from curriculum.task import Task
from curriculum.transition import EndReason, PhaseState
from learner.advantages import masks_negatives
from learner.schedule import learning_rate_at
from learner.sft import DemonstrationBatches

OUTAGE_PAUSE_S = 5.0
"""Pause before a step that found the judge away samples again."""


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
        self._weights = weights
        weights.on_delivered = self._weights_delivered
        self._demonstrations = demonstrations
        self._heldout = HeldOut(config, heldout, rollouts)
        self._journal = journal
        self._progress = progress
        self._stop = StopSignal(stop, weights.failure)
        every = config.checkpoint.every_steps
        self._stages = Stages(progress, journal, learner, curriculum, checkpoint_every=every, evaluate=self._evaluate)

    async def run(self) -> None:
        """Train until the last stage is done.

        Raises:
            Interrupted: the run was asked to stop; its last finished step has been saved, as in the cases below.
            JudgeLost: the judge stayed away too long.
            PhaseFruitless: nothing could be trained on and `curriculum.after_fruitless` says stop.
        """
        try:
            await self._stages.remember_curriculum()
            if self._progress.base_accuracy is None:
                self._progress.base_accuracy = await self._evaluate("base")
            await self._warm_up()
            await self._reinforce()
            await self._weights.settle()
        except (Interrupted, JudgeLost, PhaseFruitless):
            await self._stages.save()
            raise
        finally:
            await self._weights.close()
            if self._batches is not None:
                await self._batches.close()

    async def _warm_up(self) -> None:
        batches = self._demonstrations
        if batches is None or self._stages.has_finished("sft"):
            return
        if not self._stages.is_open:
            await self._learner.start_stage("sft")
            self._stages.open("sft", kind="sft")
        while self._stages.current.steps < len(batches):
            self._stop.check()
            await self._sft_step(batches)
        if self._curriculum is not None:
            await self._send_new_version()
        self._stages.current.end_reason = "steps"
        await self._stages.close()

    async def _reinforce(self) -> None:
        while self._curriculum is not None:
            self._stop.check()
            state = await self._curriculum.phase_state()
            if self._stages.is_open and (state.finished or state.name != self._stages.current.name):
                await self._stages.close()
            if state.finished:
                return
            if not self._stages.is_open:
                await self._open_phase(state)
            await self._train_step(state)

    async def _train_step(self, state: PhaseState) -> None:
        """Train on one batch of a phase: the algorithm, in its order."""
        step = self._begin_step(state)
        async for groups in self._scored_slices(step):
            self._compute_advantages(groups)
            await self._accumulate(step, groups)
        if step.batch:
            await self._update(step)
            await self._send_weights(step)
        await self._tell_curriculum(step)
        await self._write(step)

    # ---- the verbs of a step

    def _begin_step(self, state: PhaseState) -> Step:
        phase = self._config.curriculum.phases[state.phase]
        steps = phase_settings.expected_steps(phase)
        order = BatchOrder(
            sampling=phase_settings.sampling(self._config, phase),
            version=self._progress.policy_version,
            remaining_steps=None if steps is None else max(1, steps - state.num_steps),
        )
        learning_rate = phase_settings.learning_rate(self._config, phase, state.num_steps)
        return Step(order, learning_rate=learning_rate, total_steps=steps)

    async def _scored_slices(self, step: Step) -> AsyncGenerator[list[ScoredGroup]]:
        """Yield the batch slice by slice, each as soon as its groups are scored; the next is sampled meanwhile.

        A batch that is empty only because the judge is away is sampled again, so that an outage neither ends a phase
        nor uses up its steps.

        Raises:
            JudgeLost: the judge stayed away for `reward.max_outage_s`.
        """
        deadline = time.monotonic() + self._config.reward.max_outage_s
        batches = self._required_batches
        while True:
            while groups := await step.clock.wait(
                Part.ROLLOUT, self._stop.unless_stopped(batches.next_slice(step.order))
            ):
                yield groups
            found = batches.close_batch()
            step.collected.extend(found)
            self._journal.judge_events(await self._rollouts.judge_events())
            if found.batch or not GroupStatistics(found.sampled).judge_is_away:
                return
            await self._wait_for_judge(deadline)

    def _compute_advantages(self, groups: Sequence[ScoredGroup]) -> None:
        """Compute the numbers that the learner trains on and `trajectories/` keeps (paper Eq. 5)."""
        scale = self._config.learner.advantage_scale
        assign_advantages(groups, scale, mask_negatives=self._progress.negatives_masked)

    async def _accumulate(self, step: Step, groups: Sequence[ScoredGroup]) -> None:
        work = self._learner.accumulate(groups, batch_groups=self._config.groups_per_batch)
        await step.clock.wait(Part.LEARNER, work)

    async def _update(self, step: Step) -> None:
        step.learner = await step.clock.wait(Part.LEARNER, self._learner.update(step.learning_rate))

    async def _send_weights(self, step: Step) -> None:
        await step.clock.wait(Part.SYNC, self._send_new_version())
        step.sync = self._weights.last

    async def _tell_curriculum(self, step: Step) -> None:
        """Close the step in the curriculum; leases that a phase leaves unused when it ends belong to its last step."""
        batches, version = self._required_batches, self._progress.policy_version
        step.curriculum = await batches.finish_step(
            self._progress.step, num_trained_groups=len(step.batch), version=version
        )
        if step.curriculum.transition:
            step.collected.outcome_counts += await batches.end_phase()

    async def _write(self, step: Step) -> None:
        stage, sampled = self._stages.current, step.collected.sampled
        self._progress.ledger.add(step.collected.outcome_counts)
        stage.count(sampled, num_trained=len(step.batch))
        metrics = step_metrics(step, batches=self._required_batches, rollouts=self._rollouts, progress=self._progress)
        self._journal.step(self._progress, stage, metrics, total_steps=step.total_steps)
        await self._journal.trajectories(self._progress.step, sampled)
        if step.curriculum and step.curriculum.transition:
            stage.end_reason = str(step.curriculum.transition.reason)
            self._journal.transition(step.curriculum.transition)
        self._control_entropy(step)
        await self._stages.finish_step(step.clock.step_s)
        self._check_fruitless()

    # ---- behind the verbs

    async def _sft_step(self, batches: DemonstrationBatches) -> None:
        clock, stage, sft = StepClock(), self._stages.current, self._config.sft
        learning_rate = learning_rate_at(
            stage.steps,
            len(batches),
            peak=sft.learning_rate,
            warmup_steps=sft.warmup_steps,
            schedule=sft.schedule,
            floor=sft.learning_rate_floor,
        )
        report = await self._learner.sft_step(batches[stage.steps], learning_rate)
        self._journal.step(self._progress, stage, sft_metrics(report, clock), total_steps=len(batches))
        await self._stages.finish_step(clock.step_s)

    async def _open_phase(self, state: PhaseState) -> None:
        if not self._stages.has_finished("rl"):
            await self._learner.start_stage("rl")
        self._stages.open(state.name, kind="rl")

    async def _send_new_version(self) -> None:
        self._progress.policy_version += 1
        await self._weights.send(self._progress.policy_version)

    async def _weights_delivered(self, report: SyncReport) -> None:
        self._journal.sync(report)
        await self._required_batches.weights_delivered(report.version)

    async def _evaluate(self, after: str) -> Accuracy | None:
        """Measure the held-out accuracy under the newest weights; None where nothing is held out."""
        if not self._heldout:
            return None
        await self._weights.settle()
        accuracy = await self._stop.unless_stopped(self._heldout.accuracy())
        self._journal.judge_events(await self._rollouts.judge_events())
        self._journal.evaluation(after, accuracy)
        return accuracy

    async def _wait_for_judge(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise JudgeLost(
                f"the judge gave no verdict for reward.max_outage_s={self._config.reward.max_outage_s:g} s and without "
                "it no group can be trained on; bring the judge back, then go on with --resume"
            )
        self._journal.event("waiting_for_judge", step=self._progress.step)
        await self._stop.unless_stopped(asyncio.sleep(min(OUTAGE_PAUSE_S, self._config.reward.max_outage_s)))

    def _control_entropy(self, step: Step) -> None:
        """Decide from the entropy of the step whether the next one masks negative advantages."""
        control = self._config.learner.entropy_control
        if control is not None and step.learner is not None:
            self._progress.negatives_masked = masks_negatives(
                self._progress.negatives_masked, step.learner.entropy, high=control.high, low=control.low
            )

    def _check_fruitless(self) -> None:
        """Raise if the phase has just been closed because nothing could be trained on, and the recipe stops there."""
        stage = self._stages.current
        if stage.end_reason == EndReason.FRUITLESS and self._config.curriculum.after_fruitless == "stop":
            raise PhaseFruitless(
                f"{stage.name} trained on nothing in {self._config.curriculum.max_fruitless_steps} steps in a row "
                "(curriculum.max_fruitless_steps): no group had answers with different rewards; go on with the next "
                "phase with --resume, or start a new run with easier data"
            )

    @property
    def _required_batches(self) -> BatchSource:
        assert self._batches is not None, "reinforcement learning without a curriculum"
        return self._batches


def _batch_source(config: RunConfig, curriculum: Curriculum, rollouts: Rollouts) -> BatchSource:
    """Return strictly on-policy batches, or a source with a bounded lag."""
    dynamic_sampling = config.learner.algorithm.type == "dapo"
    common: dict[str, Any] = {
        "batch_size": config.groups_per_batch,
        "slice_size": ceil(config.groups_per_batch / config.learner.slices),
        "max_rounds": config.curriculum.max_sampling_rounds if dynamic_sampling else 1,
        "dynamic_sampling": dynamic_sampling,
    }
    if config.rollout.max_policy_lag == 0:
        return OnPolicySource(curriculum, rollouts, **common)
    return BoundedLagSource(curriculum, rollouts, max_policy_lag=config.rollout.max_policy_lag, **common)
