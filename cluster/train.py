"""`qwenlong train`: the driver of a run from the recipe to the summary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from cluster.loop import TrainingLoop
from cluster.processes.launch import Processes, launch
from cluster.processes.ray_session import check_ray, ray_session
from cluster.processes.supervision import RayGauges
from cluster.recipe.changes import check_changes
from cluster.recipe.config import RunConfig
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.recipe.preparation import Prepared, prepare
from cluster.recipe.trust import key_destination
from cluster.roles import Curriculum
from cluster.run.console import Console
from cluster.run.folder import RunFolder
from cluster.run.journal import Journal, Tracker
from cluster.run.opening import check_demonstrations, record_changes
from cluster.run.progress import Progress
from cluster.run.summary import summarise
from cluster.run.tracking import WandbTracker
from curriculum.files import private_files, write_text
from curriculum.leases import LeaseCounts
from curriculum.rejects import write_rejects


@private_files()
def train(
    config: RunConfig,
    *,
    run_dir: Path,
    resume: bool,
    console: Console,
    step: int | None = None,
    allowed: frozenset[str] = frozenset(),
) -> Path:
    """Train from a recipe; return the run folder.

    Args:
        config: the recipe.
        run_dir: a new folder, or with `resume` the folder of an earlier run.
        resume: go on from the last complete checkpoint, or from the start if there is none.
        console: where progress is printed.
        step: with `resume`, go on from the checkpoint of this step instead.
        allowed: with `resume`, keys and sections that may differ from the recipe of the run although that changes its
            numbers (see `cluster.recipe.changes`); of a key that names files also their content.

    Raises:
        UserError: the recipe, its data or the folder cannot be used, or differ from those of the run.
        RunFailed: the cluster could not be started, or a part of it is gone for good.
        Interrupted: stopped by a signal; a checkpoint has been written.
    """
    if resume:
        check_changes(load_recipe(RunFolder.open(run_dir).recipe), config, allowed=allowed, run=str(run_dir))
    if destination := key_destination(config):
        console.say(f"judge: {destination}")
    console.say(f"reading model and data of {config.name}")
    prepared = prepare(config)
    check_ray(config)
    folder = RunFolder.open(run_dir) if resume else RunFolder.create(run_dir)
    with folder.locked():
        if resume:
            check_demonstrations(folder, len(prepared.rejects.get("data.sft", ())), allowed=allowed)
            record_changes(folder, config, console.say)
        else:
            folder.clear()
            write_text(folder.recipe, dump_recipe(config))
        _write_rejects(folder, prepared, console)
        console.say(f"run folder: {folder.path}")
        with ray_session(config, folder, console.say):
            asyncio.run(_drive(config, prepared, folder, console))
    return folder.path


async def _drive(config: RunConfig, prepared: Prepared, folder: RunFolder, console: Console) -> None:
    stop = asyncio.Event()
    with _stop_on_signals(stop, console), _trackers(config, folder) as trackers:
        started = time.monotonic()
        console.say("starting the actors")

        def fault(**fields: Any) -> None:
            folder.append_event("fault", **fields)
            console.say("fault: " + ", ".join(f"{key}={value}" for key, value in fields.items()))

        async with launch(config, prepared, folder, fault) as processes:
            console.say(f"actors ready after {time.monotonic() - started:.0f} s")
            folder.append_event("actors_ready", pids=processes.pids)
            await _run(config, prepared, folder, console, trackers, processes, stop)


async def _run(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    trackers: list[Tracker],
    processes: Processes,
    stop: asyncio.Event,
) -> None:
    journal = Journal(
        folder=folder,
        console=console,
        trackers=trackers,
        checkpoint=config.checkpoint,
        fetch=processes.rollouts.fetch,
        decode=prepared.prompt.decode,
    )
    progress = await _restore(folder, processes, journal)
    loop = TrainingLoop(
        config=config,
        curriculum=processes.curriculum,
        rollouts=processes.rollouts,
        learner=processes.learner,
        weights=processes.weights,
        demonstrations=prepared.demonstrations,
        heldout=prepared.heldout,
        journal=journal,
        progress=progress,
        stop=stop,
    )
    await loop.run()
    await processes.learner.export(folder.model)
    await _summarise(config, folder, console, journal, progress, processes.curriculum)


async def _summarise(
    config: RunConfig,
    folder: RunFolder,
    console: Console,
    journal: Journal,
    progress: Progress,
    curriculum: Curriculum | None,
) -> None:
    """Write summary.json and print the results."""
    leases, imbalance = await _balance(curriculum, progress)
    if imbalance:
        journal.fault(part="ledger", error=imbalance)
    folder.write_json(folder.summary, summarise(config, progress, leases, imbalance))
    journal.event("finished")
    console.summary(progress)
    for line in _notices(progress):
        console.say(line)
    console.say(f"model:   {folder.model}")
    console.say(f"summary: {folder.summary}")


async def _restore(folder: RunFolder, processes: Processes, journal: Journal) -> Progress:
    """Load the last complete checkpoint, if there is one, into every process; return the progress to start from."""
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        journal.event("started")
        return Progress()
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    progress = Progress.from_state_dict(state["progress"])
    await processes.learner.start_stage(progress.learner_stage)
    await processes.learner.load(checkpoint / "learner")
    if processes.curriculum is not None:
        await processes.curriculum.load_state_dict(state["curriculum"])
        await processes.weights.send(progress.policy_version)
        await processes.weights.settle()
    journal.event("resumed", step=progress.step, checkpoint=checkpoint.name)
    return progress


async def _balance(curriculum: Curriculum | None, progress: Progress) -> tuple[LeaseCounts | None, str | None]:
    """Return the totals of the lease book, and how the ledger differs from them, if it does."""
    if curriculum is None:
        return None, None
    leases, still_open = await curriculum.lease_counts(), await curriculum.open_leases()
    return leases, progress.ledger.imbalance(leases, num_open=len(still_open))


def _notices(progress: Progress) -> list[str]:
    """Return warnings about the result."""
    return [
        f"note: stage {stage.name} trained on nothing in {stage.fruitless_steps} of {stage.steps} steps: in every "
        "group all answers had the same reward; use easier data, a stronger model or a longer warm-up"
        for stage in progress.finished_stages
        if stage.fruitless_steps
    ]


def _write_rejects(folder: RunFolder, prepared: Prepared, console: Console) -> None:
    for key, rejects in prepared.rejects.items():
        if rejects:
            path = folder.rejects(key)
            write_rejects(rejects, path)
            console.say(f"{key}: {len(rejects)} rows refused, listed in {path.name}")


@contextlib.contextmanager
def _trackers(config: RunConfig, folder: RunFolder) -> Generator[list[Tracker]]:
    trackers: list[Tracker] = [RayGauges(folder.path.name)]
    if not config.tracking.wandb:
        yield trackers
        return
    wandb = WandbTracker(
        name=folder.path.name,
        directory=folder.path,
        recipe=config.model_dump(mode="json"),
    )
    try:
        yield [*trackers, wandb]
    finally:
        wandb.finish()


@contextlib.contextmanager
def _stop_on_signals(stop: asyncio.Event, console: Console) -> Generator[None]:
    """Ask the loop to stop at the first SIGINT or SIGTERM; end the process at once at the second."""
    loop = asyncio.get_running_loop()

    def ask(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        console.say("stopping after this step; repeat it to stop at once without a checkpoint")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
