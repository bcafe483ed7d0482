"""The end of a run before its time: asked for by a person, or forced by a weight update that failed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from curriculum.errors import RunFailed, UserError

_T = TypeVar("_T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEAT_S = 2.0
"""Signals that follow the first within so many seconds are the same request: `timeout` and schedulers send several."""


class Interrupted(UserError):
    """The run was asked to stop; everything up to the last finished step can be saved."""

    exit_status = 130

    def __init__(self, message: str = "stopped; go on with --resume and the run folder") -> None:
        """Take what the last line of the command says."""
        super().__init__(message)

    @classmethod
    def in_folder(cls, folder: Path) -> Interrupted:
        """Return the error with the command that continues the run of this folder."""
        return cls(f"stopped; go on with: {resume_command(folder)}")


def resume_command(folder: Path) -> str:
    """Return the command that continues a run."""
    return f"qwenlong train --resume {shlex.quote(str(folder))}"


class StopRequest:
    """What signals ask of the driver: the first one stops the run, one that comes later ends the process at once.

    Until `listen` a stop raises `KeyboardInterrupt`; then it sets an event; after that there is nothing left to stop.
    Signals that the process was started to ignore, as by `nohup`, stay ignored.
    """

    def __init__(self, say: Callable[[str], None], *, now: Callable[[], float] = time.monotonic) -> None:
        """Take what prints a line, and a clock in seconds."""
        self.folder: Path | None = None
        """The run folder, once there is one."""
        self._say = say
        self._now = now
        self._asked_at: float | None = None
        self._stop: Callable[[], object] = _interrupt
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    @contextlib.contextmanager
    def handled(self) -> Generator[None]:
        """Handle the signals in a block of the main thread."""
        self._take_signals()
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def listen(self) -> Generator[asyncio.Event]:
        """Yield the event that a stop sets, in a running loop."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(self._set, event)
        self._take_signals()  # libraries may have set handlers of their own meanwhile
        try:
            yield event
        finally:
            self._stop = lambda: None

    def receive(self, number: int, frame: Any = None) -> None:
        """Take a signal; nothing is printed here, where it may have come in the middle of a line."""
        if self._asked_at is None:
            self._asked_at = self._now()
            self._stop()
        elif self._now() - self._asked_at > REPEAT_S:
            os._exit(128 + number)

    def _take_signals(self) -> None:
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self.receive)

    def _set(self, event: asyncio.Event) -> None:
        way_back = f"; go on with: {resume_command(self.folder)}" if self.folder else ""
        self._say(f"stopping, with a checkpoint of the last finished step{way_back} (a second signal ends it at once)")
        event.set()


def _interrupt() -> None:
    raise KeyboardInterrupt


async def _never() -> None:
    await asyncio.Event().wait()


class JudgeLost(RunFailed):
    """The judge has been away too long; everything up to the last finished step has been saved."""


class PhaseFruitless(RunFailed):
    """Nothing in a phase could be trained on, and the recipe says to stop then; the run has been saved."""


class StopSignal:
    """Ends waits of the loop as soon as it makes no sense to wait any more.

    Consumes: nothing.  Waits for: the work it is given.  Unblocked by: the work, a stop, or a failure.
    """

    def __init__(self, stop: asyncio.Event, failure: Callable[[], Awaitable[None]] = _never) -> None:
        """Take the event that asks the run to stop, and what raises the error of a weight update in flight."""
        self._stop = stop
        self._failure = failure

    def check(self) -> None:
        """Raise `Interrupted` if the run has been asked to stop."""
        if self._stop.is_set():
            raise Interrupted

    async def unless_stopped(self, work: Awaitable[_T]) -> _T:
        """Await `work`; cancel it as soon as the run is asked to stop or the weights in flight are lost.

        Raises:
            Interrupted: the run was asked to stop first.
            WeightSyncError: the weight update in flight failed first.
        """
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        failure = asyncio.ensure_future(self._failure())
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
