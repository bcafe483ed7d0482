"""`qwenlong train`: the driver of a run from the recipe to the summary."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Generator
from functools import partial
from pathlib import Path

from cluster.loop import TrainingLoop
from cluster.processes.diagnosis import Diagnosis
from cluster.processes.heartbeats import Watch
from cluster.processes.launch import Processes, launch
from cluster.processes.ray_session import check_ray, ray_session
from cluster.processes.supervision import ActorLost, RayGauges
from cluster.recipe.changes import check_changes
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import write_questions
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.recipe.preparation import Prepared, prepare
from cluster.recipe.trust import key_destination
from cluster.roles import Curriculum
from cluster.run.checkpoints import Checkpoint
from cluster.run.console import Console
from cluster.run.folder import RunFolder
from cluster.run.guards import check_guards
from cluster.run.journal import Journal, Tracker
from cluster.run.models import Models, export_model
from cluster.run.opening import check_demonstrations, record_changes
from cluster.run.patience import Patience
from cluster.run.progress import Progress
from cluster.run.recovery import FaultRecord, RestartBudget, RestartFromCheckpoint
from cluster.run.rehearsal import check_models, rehearse
from cluster.run.room import check_room, told_what_is_whole
from cluster.run.stopping import Interrupted, StopRequest, StopSignal
from cluster.run.summary import summarise
from cluster.run.tracking import FINISH_S, WandbTracker
from cluster.run.waits import Waits
from curriculum.errors import RunFailed
from curriculum.files import clear_leftovers, private_files, write_text
from curriculum.leases import LeaseCounts
from curriculum.rejects import write_rejects
from curriculum.seal import remove_elsewhere


@private_files()
def train(
    config: RunConfig,
    *,
    run_dir: Path,
    resume: bool,
    console: Console,
    step: int | None = None,
    allowed: Collection[str] = (),
) -> Path:
    """Train from a recipe; return the run folder.

    Args:
        config: the recipe.
        run_dir: a new folder, or with `resume` the folder of an earlier run of the same recipe.
        resume: go on from the newest checkpoint that is whole, or from the start if there is none.
        console: where progress is printed.
        step: with `resume`, go on from the checkpoint of this many finished steps.
        allowed: recipe keys whose data or model may have another content than before.

    Raises:
        UserError: the recipe, its data or the folder cannot be used, or differ from those of the run.
        RunFailed: the cluster could not be started, or a part of it is gone for good.
        Interrupted: stopped by a signal; a checkpoint has been written.
    """
    if resume:
        check_changes(load_recipe(RunFolder.open(run_dir).recipe), config, allowed=allowed, run=str(run_dir))
    if destination := key_destination(config):
        console.say(f"judge: {destination}")
    request = StopRequest(console.say)
    with request.handled():
        console.say(f"reading model and data of {config.name}")
        check_guards(config)
        check_models(config)
        prepared = prepare(config)
        for note in prepared.notes:
            console.say(note)
        check_ray(config)
        folder = RunFolder.open(run_dir) if resume else RunFolder.create(run_dir)
        with folder.locked(), _resumable(folder, request), told_what_is_whole(folder):
            if resume:
                check_demonstrations(folder, len(prepared.rejects.get("data.sft", ())), allowed=allowed)
                record_changes(folder, config, console.say)
            else:
                folder.clear()
                write_text(folder.recipe, dump_recipe(config))
            console.say(f"run folder: {folder.path}")
            folder.mend(console.say)
            checkpoint = folder.checkpoints.choose(console.say, step=step)
            if checkpoint and (changed := checkpoint.changed_inputs(config, prepared.inputs, allowed=allowed)):
                folder.append_event("inputs_changed", keys=changed)
            folder.check_reference(checkpoint, console.say)
            _write_first(config, prepared, folder, console)
            with ray_session(config, folder, console.say), _trackers(config, folder, console) as trackers:
                asyncio.run(_drive(config, prepared, folder, console, checkpoint, trackers, request))
    return folder.path


@contextlib.contextmanager
def _resumable(folder: RunFolder, request: StopRequest) -> Generator[None]:
    """End a block that is interrupted with the command that continues the run."""
    request.folder = folder.path
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted.in_folder(folder.path) from None


async def _drive(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    checkpoint: Checkpoint | None,
    trackers: list[Tracker],
    request: StopRequest,
) -> None:
    """Launch and run; after what cannot be repaired in place, again from the last checkpoint."""
    diagnosis = Diagnosis(folder.path / "diagnosis.txt")
    faults = FaultRecord(partial(folder.append_event, "fault"), console.say)
    restarts = RestartBudget(config.cluster.max_run_restarts, faults, diagnosis=diagnosis.path)
    watch = _watch(config, folder, console, faults, diagnosis)
    with request.listen() as stop, watch.watching():
        while True:
            started = time.monotonic()
            console.say("starting the actors")
            try:
                async with launch(config, prepared, folder, faults.add, watch, stop) as processes:
                    console.say(f"actors ready after {time.monotonic() - started:.0f} s")
                    folder.append_event("actors_ready", pids=processes.pids)
                    await watch.guard(
                        _run(config, prepared, folder, console, checkpoint, trackers, processes, stop, watch)
                    )
                return
            except RestartFromCheckpoint as cause:
                console.close_stage()
                if stop.is_set():
                    raise Interrupted from cause
                watch.require_ray()
                choosing = asyncio.to_thread(_choose_again, folder, console)
                checkpoint = await StopSignal(stop).unless_stopped(choosing)
                restarts.spend(cause, step=checkpoint.progress.step if checkpoint else 0)
            except ActorLost as error:
                raise RunFailed(f"{error}; {faults.summary()}") from error


def _choose_again(folder: RunFolder, console: Console) -> Checkpoint | None:
    """Remove what the actors that have ended were writing, and return the newest checkpoint that is whole."""
    folder.checkpoints.mend()
    clear_leftovers(folder.path, folder.reference.name, first=remove_elsewhere)
    return folder.checkpoints.choose(console.say)


def _watch(config: RunConfig, folder: RunFolder, console: Console, faults: FaultRecord, diagnosis: Diagnosis) -> Watch:
    return Watch(
        config.cluster,
        Waits(config.cluster.notice_s),
        say=console.say,
        note=partial(folder.append_event, "standstill"),
        on_fault=faults.add,
        diagnosis=diagnosis,
    )


async def _run(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    checkpoint: Checkpoint | None,
    trackers: list[Tracker],
    processes: Processes,
    stop: asyncio.Event,
    watch: Watch,
) -> None:
    journal = _journal(config, prepared, folder, console, trackers, processes, stop, watch)
    progress = await StopSignal(stop).unless_stopped(_restore(checkpoint, folder, console, processes, journal))
    loop = TrainingLoop(
        config=config,
        curriculum=processes.curriculum,
        rollouts=processes.rollouts,
        learner=processes.learner,
        weights=processes.weights,
        demonstrations=prepared.demonstrations,
        tasks=prepared.tasks,
        heldout=prepared.heldout,
        journal=journal,
        progress=progress,
        stop=stop,
    )
    watch.diagnosis.facts = lambda: {**processes.facts(), **loop.facts()}
    await loop.run()
    await _finish(config, folder, console, journal, progress, processes.curriculum, stop)


def _journal(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    trackers: list[Tracker],
    processes: Processes,
    stop: asyncio.Event,
    watch: Watch,
) -> Journal:
    return Journal(
        folder=folder,
        console=console,
        trackers=trackers,
        checkpoint=config.checkpoint,
        models=Models(folder, config, partial(export_model, folder=folder, config=config), console.say),
        fetch=processes.rollouts.fetch,
        decode=prepared.prompt.decode,
        waits=watch.waits,
        inputs=prepared.inputs,
        patience=Patience(console.say, stop),
    )


async def _finish(
    config: RunConfig,
    folder: RunFolder,
    console: Console,
    journal: Journal,
    progress: Progress,
    curriculum: Curriculum | None,
    stop: asyncio.Event,
) -> None:
    """Export the final model, write summary.json and print the results."""
    await StopSignal(stop).unless_stopped(journal.export_models(progress, final=True))
    leases, imbalance = await _balance(curriculum, progress)
    if imbalance:
        journal.fault(part="ledger", error=imbalance)
    summary = summarise(config, progress, leases, imbalance)
    await journal.until_room(lambda: asyncio.to_thread(folder.write_json, folder.summary, summary))
    journal.event("finished")
    console.summary(progress)
    for line in _notices(progress):
        console.say(line)
    console.say(f"model:   {folder.model}")
    console.say(f"summary: {folder.summary}")


async def _restore(
    checkpoint: Checkpoint | None, folder: RunFolder, console: Console, processes: Processes, journal: Journal
) -> Progress:
    """Load a checkpoint, if there is one, into every process; return the progress to start from."""
    if checkpoint is None:
        journal.event("started")
        return Progress()
    progress = checkpoint.progress
    await processes.learner.start_stage(progress.learner_stage)
    await processes.learner.load(checkpoint.learner)
    if processes.curriculum is not None:
        await processes.curriculum.load_state_dict(checkpoint.curriculum or {})
        await processes.weights.send(progress.policy_version)
        await processes.weights.settle()
    for path in folder.checkpoints.set_aside_after(progress.step):
        console.say(f"a later checkpoint is kept as {path.name} until the run has passed its step")
    journal.event("resumed", step=progress.step, checkpoint=checkpoint.path.name)
    return progress


async def _balance(curriculum: Curriculum | None, progress: Progress) -> tuple[LeaseCounts | None, str | None]:
    """Return the totals of the lease book, and how the ledger differs from them, if it does."""
    if curriculum is None:
        return None, None
    leases, still_open = await curriculum.lease_counts(), await curriculum.open_leases()
    return leases, progress.ledger.imbalance(leases, num_open=len(still_open))


def _notices(progress: Progress) -> list[str]:
    """Return warnings about the result."""
    quarantine = [
        f"note: {len(progress.quarantine)} tasks are in quarantine because engines or judges failed at them again and "
        "again; quarantine.jsonl says which and why"
    ]
    return (quarantine if progress.quarantine else []) + [
        f"note: stage {stage.name} trained on nothing in {stage.fruitless_steps} of {stage.steps} steps: in every "
        "group all answers had the same reward; use easier data, a stronger model or a longer warm-up"
        for stage in progress.finished_stages
        if stage.fruitless_steps
    ]


def _write_first(config: RunConfig, prepared: Prepared, folder: RunFolder, console: Console) -> None:
    """Try what the run will write at its end; write which rows of the data were refused, and what is held out."""
    check_room(folder, config, prepared.model_path)
    for note in rehearse(config, prepared, folder.model_files, run=folder.path.name):
        console.say(note)
    for key, rejects in prepared.rejects.items():
        if rejects:
            path = folder.rejects(key)
            write_rejects(rejects, path)
            console.say(f"{key}: {len(rejects)} rows refused, listed in {path.name}")
    if prepared.heldout.items:
        write_questions(prepared.heldout.items, folder.heldout / "questions.jsonl")


@contextlib.contextmanager
def _trackers(config: RunConfig, folder: RunFolder, console: Console) -> Generator[list[Tracker]]:
    trackers: list[Tracker] = [RayGauges(folder.path.name)]
    if not config.tracking.wandb:
        yield trackers
        return
    wandb = WandbTracker(
        name=folder.path.name,
        directory=folder.path,
        recipe=config.model_dump(mode="json"),
        say=console.say,
    )
    try:
        yield [*trackers, wandb]
    except BaseException:
        wandb.finish(within_s=FINISH_S)
        raise
    wandb.finish()
