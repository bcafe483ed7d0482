"""The loop: warm-up SFT, then curriculum-guided phases of reinforcement learning. Read `_train_step` first.

With `rollout.max_policy_lag = 0` a batch is sampled under the weights that the step before it produced. With k > 0
groups are sampled without a break, under weights that are at most k updates older than those they train, and new
weights travel to the engines while the learner begins the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from cluster.batches.choice import batch_source
from cluster.batches.source import BatchSource
from cluster.group import ScoredGroup, assign_advantages
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import HeldOutSet
from cluster.roles import Curriculum, Learner, Rollouts, SyncReport, TaskFailed
from cluster.run.group_statistics import GroupStatistics
from cluster.run.guards import MAX_SKIPPED_IN_A_ROW, Finding, Guards
from cluster.run.heldout import HeldOut
from cluster.run.heldout_statistics import Evaluation
from cluster.run.journal import Journal
from cluster.run.measuring import Measuring
from cluster.run.metrics import sft_metrics, step_metrics
from cluster.run.progress import Progress
from cluster.run.quarantine import QuarantinedTask, check_quarantine
from cluster.run.recovery import CoordinatorLost
from cluster.run.stages import Stages, check_fruitless
from cluster.run.step import Part, Step, StepClock
from cluster.run.stopping import Interrupted, JudgeLost, PhaseFruitless, StopSignal
from cluster.weights.sync import WeightSync
from curriculum.errors import root_cause
from curriculum.metric import metrics_of
from curriculum.task import Task
from curriculum.transition import PhaseState
from learner.advantages import masks_negatives
from learner.schedule import learning_rate_at
from learner.sft import DemonstrationBatches
from learner.weights.finite import NonFiniteWeights

OUTAGE_PAUSE_S = 5.0
"""Pause before a step that found the judge away samples again."""

CLOSE_S = 2.0
"""Longest wait at the end of a run for engines to drop what they are working on."""


class TrainingLoop:
    """Runs the recipe from wherever `progress` stands.

    Consumes: scored groups.  Waits for: a batch, then the learner.  Unblocked by: `stop`, at once unless an optimizer
    update is being made; the step of such an update is finished, every other one is dropped.
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
        tasks: Sequence[Task],
        heldout: HeldOutSet,
        journal: Journal,
        progress: Progress,
        stop: asyncio.Event,
    ) -> None:
        self._config = config
        self._curriculum = curriculum
        self._rollouts = rollouts
        self._batches = None if curriculum is None else batch_source(config, curriculum, rollouts)
        self._learner = learner
        self._weights = weights
        weights.on_delivered = self._weights_delivered
        self._demonstrations = demonstrations
        self._heldout = HeldOut(config, heldout, rollouts)
        self._journal = journal
        self._progress = progress
        self._stop = StopSignal(stop, weights.failure)
        self._guards = Guards(config.guards, progress.guards)
        self._stages = Stages(
            progress,
            journal,
            learner,
            curriculum,
            checkpoint=config.checkpoint,
            evaluate_every=config.evaluation.every_steps,
            evaluate=self._evaluate,
            guards=self._guards,
            stop=self._stop,
        )
        self._measuring = Measuring(config, tasks, curriculum, rollouts, journal, self._stages.remember_curriculum)

    async def run(self) -> None:
        """Train until the last stage is done.

        Raises:
            Interrupted: the run was asked to stop; its last finished step has been saved, as in the cases below.
            JudgeLost: the judge stayed away too long.
            PhaseFruitless: nothing could be trained on and `curriculum.after_fruitless` says stop.
            CoordinatorLost: it died; the last finished step has been saved unless the running one had updated weights.
            RestartFromCheckpoint: something else that the run needs is gone, and nothing could be saved.
            GuardStop: a guard of the recipe stops the run; nothing more is saved.
            TooManyQuarantined: so many tasks failed that the fault is not theirs.
        """
        try:
            await self._stages.begin()
            await self._measure_difficulty()
            await self._warm_up()
            await self._reinforce()
            await self._stop.unless_stopped(self._weights.settle())
        except (Interrupted, JudgeLost, PhaseFruitless):
            await self._stages.save()
            raise
        except CoordinatorLost:
            if self._stages.is_between_steps:
                await self._stages.save()
            raise
        finally:
            await self._close()

    async def _close(self) -> None:
        """End what runs in the background; an engine that does not answer is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._weights.close()
                if self._batches is not None:
                    await self._batches.close()

    def facts(self) -> dict[str, Any]:
        """Return what a diagnosis tells of the loop."""
        return {
            "finished steps": self._progress.step,
            "stage": self._stages.current.name if self._stages.is_open else None,
            "policy_version of the learner": self._progress.policy_version,
            "groups that wait for a batch": 0 if self._batches is None else self._batches.num_waiting,
        }

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
                await self._measure_difficulty()
            await self._train_step(state)

    async def _train_step(self, state: PhaseState) -> None:
        """Train on one batch of a phase: the algorithm, in its order."""
        step = Step.begin(self._config, state, self._progress)
        async for groups in self._scored_slices(step):
            self._compute_advantages(groups)
            await self._accumulate(step, groups)
        if step.batch and await self._passes_guards(step):
            await self._update(step)
            await self._send_weights(step)
        await self._tell_curriculum(step)
        await self._obey_guards(await self._write(step))

    # ---- the verbs of a step

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
                Part.ROLLOUT,
                self._stop.unless_stopped(self._journal.waiting("a batch", batches.next_slice(step.order))),
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
        learner, masked = self._config.learner, self._progress.negatives_masked
        assign_advantages(groups, learner.deviation, mask_negatives=masked, mask_truncated=learner.mask_truncated)

    async def _accumulate(self, step: Step, groups: Sequence[ScoredGroup]) -> None:
        work = self._learner.accumulate(groups, batch_groups=self._config.groups_per_batch)
        await step.clock.wait(Part.LEARNER, self._stop.unless_stopped(work))

    async def _passes_guards(self, step: Step) -> bool:
        """Judge what is known before the update; if a guard leaves it out, drop the batch, which counts as skipped."""
        metrics = metrics_of(step.groups)
        if self._guards.needs_preview:
            preview = await step.clock.wait(Part.LEARNER, self._learner.preview())
            metrics |= metrics_of(preview)
        found = self._guards.before_update(metrics)
        for finding in found:
            self._journal.guard(self._progress.step, finding)
            if finding.num_steps >= finding.rule.steps + MAX_SKIPPED_IN_A_ROW:
                raise self._guards.stop(finding, f", and {MAX_SKIPPED_IN_A_ROW} updates have been left out")
        if found:
            await step.clock.wait(Part.LEARNER, self._learner.drop())
            step.collected.skip_batch()
        return not found

    async def _update(self, step: Step) -> None:
        self._stages.is_between_steps = False
        step.learner = await step.clock.wait(Part.LEARNER, self._learner.update(step.learning_rate))

    async def _send_weights(self, step: Step) -> None:
        sending = self._journal.waiting("weights in the engines", self._send_new_version())
        await step.clock.wait(Part.SYNC, sending)
        step.sync = self._weights.last

    async def _tell_curriculum(self, step: Step) -> None:
        """Close the step in the curriculum; leases that a phase leaves unused when it ends belong to its last step."""
        batches, version = self._required_batches, self._progress.policy_version
        self._stages.is_between_steps = False
        step.curriculum = await batches.finish_step(
            self._progress.step, num_trained_groups=step.collected.num_with_signal, version=version
        )
        if step.curriculum.transition:
            step.collected.extend(await batches.end_phase())

    async def _write(self, step: Step) -> list[Finding]:
        """Write the step down, and save the run if it is time; return what the guards find in its metrics."""
        stage, sampled = self._stages.current, step.collected.sampled
        self._progress.ledger.add(step.collected.outcome_counts)
        self._quarantine(step.collected.quarantined)
        stage.count(sampled, num_trained=len(step.batch), num_skipped=len(step.collected.skipped))
        metrics = step_metrics(step, batches=self._required_batches, rollouts=self._rollouts, progress=self._progress)
        self._journal.step(self._progress, stage, metrics, total_steps=step.total_steps)
        await self._journal.trajectories(self._progress.step, sampled)
        if step.curriculum and step.curriculum.transition:
            stage.end_reason = str(step.curriculum.transition.reason)
            self._journal.transition(step.curriculum.transition)
        self._control_entropy(step)
        found = self._guards.after_step(metrics)
        await self._stages.finish_step(step.clock.step_s)
        check_fruitless(stage, self._config.curriculum)
        if step.curriculum and step.collected.quarantined:
            check_quarantine(self._progress.quarantine, step.curriculum)
        return found

    async def _obey_guards(self, found: Sequence[Finding]) -> None:
        """Tell what the guards found in the step that has ended, and do what the hardest of them says.

        Raises:
            GuardStop: it says stop, or the learner cannot go back.
        """
        for finding in found:
            if finding.rule.action != "warn" or finding.is_news:
                self._journal.guard(self._progress.step - 1, finding)
        hardest = next(iter(found), None)
        if hardest is not None and hardest.rule.action == "stop":
            raise self._guards.stop(hardest)
        if hardest is not None and hardest.rule.action == "roll_back":
            await self._roll_back(hardest)

    # ---- behind the verbs

    async def _roll_back(self, finding: Finding) -> None:
        """Give the learner the weights and optimizer of the last good checkpoint back; curriculum and steps go on.

        So the batches that led here are not met again. Groups that were sampled meanwhile are given back.
        """
        step = self._guards.checkpoint_to_roll_back_to(finding)
        await self._weights.settle()
        if self._stages.current.kind == "rl":
            given_back = await self._required_batches.restart(self._progress.policy_version + 1)
            self._progress.ledger.add(given_back.outcome_counts)
            self._quarantine(given_back.quarantined)
            await self._stages.roll_back(step)
            await self._send_new_version()
            await self._weights.settle()
        else:
            await self._stages.roll_back(step)
        self._journal.event("rolled_back", step=self._progress.step, checkpoint=step)
        await self._stages.save_rolled_back()

    def _quarantine(self, tasks: Sequence[TaskFailed]) -> None:
        for failed in tasks:
            task = QuarantinedTask(reason=failed.reason, actor=failed.actor, step=self._progress.step)
            self._progress.quarantine[failed.task_id] = task
            self._journal.quarantined(failed.task_id, task)

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
        self._stages.is_between_steps = False
        report = await self._learner.sft_step(batches[stage.steps], learning_rate)
        metrics = sft_metrics(report, clock)
        self._journal.step(self._progress, stage, metrics, total_steps=len(batches))
        found = self._guards.after_step(metrics)
        stage.end_reason = "steps" if stage.steps + 1 == len(batches) else None
        await self._stages.finish_step(clock.step_s)
        await self._obey_guards(found)

    async def _open_phase(self, state: PhaseState) -> None:
        if not self._stages.has_finished("rl"):
            await self._journal.until_room(lambda: self._learner.start_stage("rl"))
        self._stages.open(state.name, kind="rl")

    async def _measure_difficulty(self) -> None:
        """Measure the tasks that the curriculum wants to know better, under the newest weights."""
        if self._curriculum is not None:
            await self._stop.unless_stopped(self._weights.settle())
            await self._stop.unless_stopped(self._measuring.catch_up())

    async def _send_new_version(self) -> None:
        """Send the weights; a stop does not wait for their arrival, since a resumed run sends them again."""
        self._progress.policy_version += 1
        try:
            with contextlib.suppress(Interrupted):
                await self._stop.unless_stopped(self._weights.send(self._progress.policy_version))
        except NonFiniteWeights as error:
            raise NonFiniteWeights(f"step {self._progress.step}: {root_cause(error)}") from error

    async def _weights_delivered(self, report: SyncReport) -> None:
        self._journal.sync(report)
        await self._required_batches.weights_delivered(report.version)

    async def _evaluate(self, stage: str, *, ends_stage: bool) -> Evaluation | None:
        """Measure the held-out questions under the newest weights; None where nothing is held out.

        Raises:
            GuardStop: a guard of the recipe says so.
        """
        if not self._heldout:
            return None
        if not ends_stage and self._stages.current.kind == "sft":  # where engines get no weights before the end
            await self._send_new_version()
        await self._stop.unless_stopped(self._weights.settle())
        asked = await self._stop.unless_stopped(self._heldout.ask(with_controls=ends_stage))
        self._journal.judge_events(await self._rollouts.judge_events())
        found = await self._journal.evaluation(stage, self._progress.step, asked)
        self._stages.evaluated(found.metrics)
        if self._progress.step:
            await self._obey_guards(self._guards.after_evaluation(found.metrics))
        return found

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

    @property
    def _required_batches(self) -> BatchSource:
        assert self._batches is not None, "reinforcement learning without a curriculum"
        return self._batches
