"""The record of a run: every event goes from the loop to the run folder, the console and the trackers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actors.trajectory import Group
from cluster.group import ScoredGroup
from cluster.recipe.config import CheckpointConfig
from cluster.roles import Learner, SyncReport
from cluster.run.checkpoints import LEARNER
from cluster.run.console import Console
from cluster.run.folder import RunFolder
from cluster.run.guards import ACTIONS, Finding
from cluster.run.heldout_log import write_heldout
from cluster.run.heldout_statistics import ACCURACY, Evaluation, HeldOutStatistics
from cluster.run.metrics import METRICS
from cluster.run.models import Models, kept_steps
from cluster.run.patience import Patience
from cluster.run.progress import Progress, StageProgress
from cluster.run.quarantine import QuarantinedTask
from cluster.run.trajectory_log import write_trajectories
from cluster.run.waits import Waits
from curriculum.controls import CONTROLS
from curriculum.errors import RunFailed, UserError
from curriculum.metric import Metrics, is_declared, metrics_of
from curriculum.seal import part_of
from curriculum.step_counts import mean
from curriculum.transition import Transition
from reward.circuit import CircuitState, JudgeEvent

_T = TypeVar("_T")

_CIRCUIT_EVENTS = {
    CircuitState.OPEN: "judge_circuit_opened",
    CircuitState.HALF_OPEN: "judge_circuit_half_opened",
    CircuitState.CLOSED: "judge_circuit_closed",
}


class Tracker(Protocol):
    """A dashboard that draws curves."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record the metrics of one step."""
        ...


class Journal:
    """Writes what happens in a run."""

    def __init__(
        self,
        *,
        folder: RunFolder,
        console: Console,
        trackers: Sequence[Tracker],
        checkpoint: CheckpointConfig,
        models: Models | None = None,
        fetch: Callable[[Sequence[Any]], Sequence[Group]],
        decode: Callable[[Sequence[int]], str],
        waits: Waits | None = None,
        inputs: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Take the places to write to.

        Args:
            folder: the run folder.
            console: prints for people.
            trackers: dashboards.
            checkpoint: which checkpoints are kept.
            models: makes the models of the run; None makes none.
            fetch: turns references into groups; may block.
            decode: turns the token ids of an answer into its text; may block.
            waits: is told what the loop waits for.
            inputs: digests of the data and the model by recipe key, for the checkpoints.
            patience: waits while a disk is full; None for one that no stop of the run ends.
        """
        self._waits = waits or Waits()
        self._folder = folder
        self._console = console
        self._trackers = trackers
        self._checkpoint = checkpoint
        self._models = models
        self._fetch = fetch
        self._decode = decode
        self._inputs = dict(inputs or {})
        self._patience = patience or Patience(console.say, asyncio.Event())

    def step(self, progress: Progress, stage: StageProgress, metrics: Metrics, *, total_steps: int | None) -> None:
        """Record the metrics of a step, before it is counted in `progress`.

        Raises:
            KeyError: a metric that no class declares.
        """
        metrics = self._log(progress.step, stage.name, metrics)
        self._console.step(stage.name, stage.steps, total_steps, metrics)

    async def trajectories(self, step: int, sampled: Sequence[ScoredGroup]) -> None:
        """Write every answer of a step; fetch and write them in a thread."""
        if sampled:
            await self.until_room(lambda: asyncio.to_thread(self._write_trajectories, step, sampled))

    async def evaluation(self, stage: str, step: int, found: HeldOutStatistics) -> Evaluation:
        """Record the answers to the held-out questions and return their numbers.

        Args:
            stage: the one in or after which they were asked; `base` before the first.
            step: training steps that were finished.
            found: the answers.
        """
        await self.until_room(lambda: asyncio.to_thread(self._write_heldout, step, found))
        evaluation = found.evaluation(step, metrics_of(found))
        self._log(step, stage, evaluation.metrics)
        self._folder.append_event("evaluation", after=stage, **asdict(evaluation))
        self._console.say(f"held-out questions after {step} steps ({stage}): {_told(evaluation)}")
        return evaluation

    def measuring(self, num_done: int, total: int) -> None:
        """Say how many tasks have been measured for replay so far."""
        self._console.say(f"measuring how hard {total} tasks are, one group each: {num_done} done")

    def measured(self, total: int, accuracies: Sequence[float]) -> None:
        """Record what the tasks that were measured came to; the group of some may have too few known rewards."""
        num_solved = sum(accuracy == 1.0 for accuracy in accuracies)
        self._folder.append_event(
            "measured", tasks=total, scored=len(accuracies), solved=num_solved, accuracy=mean(accuracies)
        )
        told = f"{num_solved} are solved, {accuracies.count(0.0)} have no success"
        self._console.say(f"measured {len(accuracies)} of {total} tasks: {told}")

    def stage_opened(self, stage: StageProgress) -> None:
        """Record the start of a stage."""
        self._folder.append_event("stage_opened", stage=stage.name, kind=stage.kind)
        self._console.open_stage(stage.name)

    def stage_closed(self, stage: StageProgress) -> None:
        """Record the end of a stage."""
        self._folder.append_event("stage_closed", stage=stage.name, steps=stage.steps, reason=stage.end_reason)
        self._console.close_stage()

    def transition(self, transition: Transition) -> None:
        """Record the end of a phase of the curriculum."""
        fields = asdict(transition)
        self._folder.append_event("transition", **{**fields, "reason": str(transition.reason)})

    def sync(self, report: SyncReport) -> None:
        """Record a weight update that has reached every engine."""
        self._folder.append_event("sync", **asdict(report))

    def judge_events(self, events: Sequence[JudgeEvent]) -> None:
        """Record that the circuit breaker of a judge opened, closed, or tries again."""
        for event in events:
            fields = {key: value for key, value in asdict(event).items() if key != "state"}
            self._folder.append_event(_CIRCUIT_EVENTS[event.state], **fields)
            if event.state is not CircuitState.HALF_OPEN:
                self._console.say(f"circuit breaker of judge {event.judge} is {event.state}: {event.reason}")

    def fault(self, **fields: Any) -> None:
        """Record a failure that was handled."""
        self._folder.append_event("fault", **fields)
        self._console.say("fault: " + ", ".join(f"{key}={value}" for key, value in fields.items()))

    async def waiting(self, what: str, work: Awaitable[_T], *, is_bounded: bool = False) -> _T:
        """Await `work`; if it takes long, it is spoken of as a wait for `what`. `is_bounded`: it ends by itself."""
        with self._waits.on(what, is_bounded=is_bounded):
            return await work

    def quarantined(self, task_id: str, task: QuarantinedTask) -> None:
        """Record a task that is not handed out any more."""
        record = {"task_id": task_id, **asdict(task)}
        self._folder.append_quarantined(record)
        self._folder.append_event("quarantined", **record)

    def guard(self, step: int, finding: Finding) -> None:
        """Record that a guard is met, and what is done about it."""
        rule = finding.rule
        self._folder.append_event(
            "guard",
            step=step,
            metric=rule.metric,
            value=finding.value if isfinite(finding.value) else str(finding.value),
            bound=rule.bound,
            steps=finding.num_steps,
            action=rule.action,
        )
        self._console.say(f"guard: step {step}: {finding}; {ACTIONS[rule.action]}")

    def event(self, event: str, **fields: Any) -> None:
        """Record any other event."""
        self._folder.append_event(event, **fields)

    async def checkpoint(self, progress: Progress, curriculum: dict[str, Any] | None, learner: Learner) -> None:
        """Save the run after its last finished step; do nothing before the first."""
        if progress.step == 0:
            return
        state = {"progress": progress.state_dict(), "curriculum": curriculum, "inputs": self._inputs}
        kept = {*kept_steps(progress, self._checkpoint.keep).values()}
        if progress.guards.good_checkpoint is not None:
            kept.add(progress.guards.good_checkpoint)
        path = await self.waiting(
            "a checkpoint", self.until_room(lambda: self._write_checkpoint(progress.step, state, learner, kept=kept))
        )
        self._folder.append_event("checkpoint", step=progress.step, path=str(path.relative_to(self._folder.path)))

    async def export_models(self, progress: Progress, *, final: bool = False) -> None:
        """Make the models of stages and of the best step that are not there yet, and the final one at the end.

        Args:
            progress: of the newest checkpoint, which has just been written or proved.
            final: make `model`, too.
        """
        if self._models is None:
            return
        for path, checkpoint in [*self._models.missing(progress), *(self._models.final(progress) if final else ())]:
            name = str(path.relative_to(self._folder.path))
            making = partial(self._models.make, path, checkpoint)
            await self.waiting(f"the export of {name}", self.until_room(making), is_bounded=True)
            self._folder.append_event("model", path=name, step=checkpoint.progress.step)

    async def roll_back(self, step: int, learner: Learner, *, stage: str) -> None:
        """Give a learner that is in `stage` the weights and the optimizer of the checkpoint after `step` back.

        Raises:
            UserError: that checkpoint is damaged.
        """
        checkpoint = await asyncio.to_thread(self._folder.checkpoints.choose, self._console.say, step=step)
        assert checkpoint is not None, "the checkpoint of a step that is wanted is found or refused"
        saved = checkpoint.progress.learner_stage
        await learner.start_stage(saved)
        await learner.load(checkpoint.learner)
        if saved != stage:
            await learner.start_stage(stage)

    async def until_room(self, write: Callable[[], Awaitable[_T]]) -> _T:
        """Write something, and the lines that wait; while a disk is full, wait for room and say so.

        Raises:
            DiskFull: there was no room for too long.
        """

        async def write_all() -> _T:
            self._folder.write_waiting()
            return await write()

        return await self._patience.until_room(write_all)

    def _log(self, step: int, stage: str, metrics: Metrics) -> Metrics:
        """Write a line of metrics, and send it to the trackers; return what JSON can hold of it."""
        undeclared = [key for key in metrics if not is_declared(key, METRICS)]
        if undeclared:
            raise KeyError(f"metrics {sorted(undeclared)} are not declared by any class of cluster/run/metrics.py")
        metrics = {key: value for key, value in metrics.items() if isfinite(value)}  # JSON has no infinity
        self._folder.append_metrics({"step": step, "stage": stage, **metrics})
        for tracker in self._trackers:
            tracker.log(step, metrics)
        return metrics

    async def _write_checkpoint(self, step: int, state: dict[str, Any], learner: Learner, *, kept: set[int]) -> Path:
        await asyncio.to_thread(self._folder.sync_lines)
        checkpoints, settings = self._folder.checkpoints, self._checkpoint
        folder = await asyncio.to_thread(checkpoints.begin, step, storage=settings.storage)
        place = part_of(folder, LEARNER)
        try:
            written = await learner.save(place)
            finish = partial(checkpoints.finish, keep_last=settings.keep.last, keep_steps=kept, say=self._going_on)
            return await asyncio.to_thread(finish, folder, step, state, written)
        except RunFailed:
            raise  # a rank may still be writing; it is discarded when the actors are gone
        except UserError:
            with suppress(UserError):
                await learner.discard(place)
                await asyncio.to_thread(checkpoints.discard, step)
            raise

    def _going_on(self, line: str) -> None:
        """Say how far long work of the driver has come, which is no standstill."""
        self._waits.progress()
        self._console.say(line)

    def _write_trajectories(self, step: int, sampled: Sequence[ScoredGroup]) -> None:
        groups = self._fetch([group.group for group in sampled])
        write_trajectories(self._folder.trajectories, step, list(zip(sampled, groups, strict=True)), self._decode)

    def _write_heldout(self, step: int, found: HeldOutStatistics) -> None:
        answered = [asked for asked in found.groups if asked.scored is not None]
        groups = iter(self._fetch([asked.scored.group for asked in answered if asked.scored is not None]))
        pairs = [(asked, next(groups) if asked.scored else None) for asked in found.groups]
        write_heldout(self._folder.heldout, step, pairs, self._decode, num_samples=found.num_samples)


def _told(found: Evaluation) -> str:
    """Return the numbers of an evaluation in words."""
    cells = {
        "accuracy": found.cells[ACCURACY],
        **found.phases,
        **{f"with {control}": cell for control in CONTROLS if (cell := found.under(control))},
    }
    return ", ".join(f"{name} {cell}" for name, cell in cells.items())
