"""Worker processes that run trials; one that stops answering, or dies, is replaced, and its trial is a finding."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz.command import TIME_LIMIT_S, run_command
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import Finding, Kind, Trial, findings

PATIENCE_S = 3 * TIME_LIMIT_S
"""A worker that is silent for so long stands in code that no signal interrupts, and is killed."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The name of one trial."""

    seed: int
    target: str
    index: int

    def __str__(self) -> str:
        return f"{self.target}/{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found with one input."""

    input: Input
    status: int | None
    findings: tuple[Finding, ...]
    arguments: tuple[str, ...]


def run_input(given: Input, folder: Path) -> Outcome:
    """Make a trial and run it."""
    make, _ = TARGETS[given.target]
    folder.mkdir(parents=True)
    trial: Trial = make(random.Random(f"{given.seed}/{given.target}/{given.index}"), folder)
    ending = run_command(trial, folder)
    found = tuple(findings(trial, ending))
    return Outcome(input=given, status=ending.status, findings=found, arguments=trial.arguments)


class _Worker:
    """A process with a pipe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.pipe, theirs = _FORK.Pipe()
        self.process = _FORK.Process(target=_serve, args=(theirs, root), daemon=True)
        self.process.start()
        theirs.close()
        self.input: Input | None = None
        self.since = 0.0

    def send(self, given: Input) -> None:
        """Hand out a trial."""
        self.input, self.since = given, time.monotonic()
        self.pipe.send(given)

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_inputs(inputs: Sequence[Input], *, root: Path, num_workers: int) -> Iterator[Outcome]:
    """Run trials in worker processes; yield their outcomes as they come."""
    waiting = list(reversed(inputs))
    workers = [_Worker(root) for _ in range(min(num_workers, len(waiting)))]
    for worker in workers:
        worker.send(waiting.pop())
    while workers:
        ready = wait([worker.pipe for worker in workers], timeout=1.0)
        for position, worker in enumerate(list(workers)):
            outcome = _outcome(worker, is_ready=worker.pipe in ready)
            if outcome is None:
                continue
            yield outcome
            if outcome.status is None:
                worker.kill()
                workers[position] = worker = _Worker(root)
            if waiting:
                worker.send(waiting.pop())
            else:
                worker.kill()
                workers[position] = None  # type: ignore[call-overload]
        workers = [worker for worker in workers if worker is not None]


def _outcome(worker: _Worker, *, is_ready: bool) -> Outcome | None:
    assert worker.input is not None
    if is_ready:
        try:
            return worker.pipe.recv()
        except EOFError:
            worker.process.join()
            detail = f"the process died with {worker.process.exitcode}"
            return _stopped(worker.input, Kind.TRACEBACK, detail)
    if time.monotonic() - worker.since > PATIENCE_S:
        return _stopped(worker.input, Kind.HANG, f"no answer for {PATIENCE_S:.0f} s, and deaf to a signal")
    return None


def _stopped(given: Input, kind: Kind, detail: str) -> Outcome:
    return Outcome(input=given, status=None, findings=(Finding(kind=kind, detail=detail),), arguments=())


def _serve(pipe: Connection, root: Path) -> None:
    quiet = os.open(root / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    while True:
        given: Any = pipe.recv()
        folder = root / given.target / str(given.index)
        outcome = run_input(given, folder)
        os.chdir(root)
        if not outcome.findings:
            shutil.rmtree(folder, ignore_errors=True)
        pipe.send(outcome)
