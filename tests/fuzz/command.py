"""Runs a command in this process, with a limit of time and of memory, and keeps what it says."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner

from cluster.cli import app
from tests.fuzz.trial import Ending, Kind, Trial

TIME_LIMIT_S = 10.0
MEMORY_LIMIT_BYTES = 2 << 30
"""Beyond what the process has when a trial begins."""


class OutOfTime(BaseException):
    """The command did not end in time; no `except Exception` of the product stops it."""


class WouldStart(BaseException):
    """The command has checked everything and would start Ray now."""


def run_command(trial: Trial, folder: Path) -> Ending:
    """Run the command of a trial inside its folder."""
    (folder / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    os.chdir(folder)
    try:
        with _time_limit(), _memory_limit():
            result = CliRunner().invoke(app, list(trial.arguments))
    except OutOfTime:
        return Ending(status=None, stderr="", traceback=traceback.format_exc(), stopped_for=Kind.HANG)
    except WouldStart:
        return Ending(status=0, stderr="")
    except MemoryError:
        return Ending(status=None, stderr="", traceback=traceback.format_exc(), stopped_for=Kind.MEMORY)
    if isinstance(result.exception, MemoryError):
        return Ending(status=None, stderr=result.stderr, traceback=_text(result.exception), stopped_for=Kind.MEMORY)
    trace = "" if result.exception is None or isinstance(result.exception, SystemExit) else _text(result.exception)
    if result.exit_code == 70:
        trace = "\n".join(log.read_text(errors="replace") for log in folder.rglob("*fault*.log"))
        if "MemoryError" in trace:
            return Ending(status=None, stderr=result.stderr, traceback=trace, stopped_for=Kind.MEMORY)
    return Ending(status=result.exit_code, stderr=result.stderr, traceback=trace)


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@contextlib.contextmanager
def _time_limit() -> Generator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _memory_limit() -> Generator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
