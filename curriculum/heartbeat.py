"""The sign of life between driver and actors, both ways: the driver hears what an actor does, the actor that it lives.

`Pulse` is the actor's side: it answers the driver, and ends its process when the driver has not asked for too long.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

IDLE = "idle"
START = "start"
"""Work of an actor that loads its model."""
TICK_S = 1.0
"""Seconds between two looks for the driver."""

_GUARDIAN = """
import os, sys
sys.stdin.read()  # ends with the process at the other end
for pid in map(int, sys.argv[1:]):
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
"""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Self = TypeVar("_Self")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What an actor says of itself."""

    doing: str
    """Its work, by the name of a method; `idle` without any."""
    still_s: float
    """Seconds since that work last got on."""
    pid: int
    children: tuple[int, ...]
    """Process ids of all its descendants, such as the core of an engine."""
    node_id: str
    """Ray's id of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifeline:
    """How long an actor lives without its driver."""

    orphan_s: float
    """Seconds without a question of the driver."""
    startup_s: float
    """The same before the first question and in `START`, while the process loads a model and cannot answer, if that is
    longer."""


class Pulse:
    """What this process does and when it last got on; may be used by several threads.

    Consumes: questions of the driver.  Waits for: nothing.  Without a question for too long, the process ends itself.
    """

    def __init__(self, lifeline: Lifeline | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        """Look after the driver in a thread from now on; without a `lifeline` the process does not depend on one."""
        self._now = now
        self._lifeline = lifeline
        self._doing: list[str] = []
        self._progressed = now()
        self._was_asked = False
        self._num_ticks = 0
        """Ticks since the driver's last question; time in which this process was stopped does not count."""
        if lifeline is not None:
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
            threading.Thread(target=self._watch_driver, name="driver-watch", daemon=True).start()

    def progress(self) -> None:
        """Note that the work got on."""
        self._progressed = self._now()

    @contextlib.contextmanager
    def doing(self, work: str) -> Generator[None]:
        """Name the work of a block; its begin and its end are progress."""
        self.progress()
        self._doing.append(work)
        try:
            yield
        finally:
            self._doing.remove(work)
            self.progress()

    def beat(self, node_id: str, *, doing: str | None = None, still_s: float | None = None) -> Heartbeat:
        """Answer the driver; `doing` and `still_s` (seconds) are given where no `doing` block knows them."""
        self._was_asked, self._num_ticks = True, 0
        work = doing or next(reversed(self._doing), IDLE)
        if still_s is None:
            still_s = 0.0 if work == IDLE else self._now() - self._progressed
        pid = os.getpid()
        return Heartbeat(doing=work, still_s=still_s, pid=pid, children=descendants(pid), node_id=node_id)

    def tick(self) -> bool:
        """Count `TICK_S` without a question; return whether there was none for too long."""
        if self._lifeline is None:
            return False
        self._num_ticks += 1
        orphan_s, startup_s = self._lifeline.orphan_s, self._lifeline.startup_s
        limit_s = orphan_s if self._was_asked and START not in self._doing else max(orphan_s, startup_s)
        return self._num_ticks * TICK_S > limit_s

    def _watch_driver(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(TICK_S)
            if self.tick():
                end_with_descendants("no sign of the driver for cluster.orphan_s")
        end_with_descendants("the node process of Ray has ended")


def reported(method: Callable[Concatenate[_Self, _P], _R]) -> Callable[Concatenate[_Self, _P], _R]:
    """Let the `_pulse` of an object show that this method is at work, under its own name."""

    @functools.wraps(method)
    def report(self: _Self, *arguments: _P.args, **options: _P.kwargs) -> _R:
        pulse: Any = vars(self)["_pulse"]
        with pulse.doing(getattr(method, "__name__", "call")):
            return method(self, *arguments, **options)

    return report


def descendants(pid: int) -> tuple[int, ...]:
    """Return the process ids of all descendants of a process on this host."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return tuple(found[1:])


def kill_processes(pids: tuple[int, ...]) -> None:
    """Send SIGKILL, which a stopped process obeys as well."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_with_this_process(pids: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Have processes killed as soon as this one ends, in whatever way; return the process that waits for that.

    Ray kills the children of an actor that dies, unless Ray died first.
    """
    command = [sys.executable, "-I", "-S", "-c", _GUARDIAN, *map(str, pids)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_with_descendants(reason: str) -> None:
    """End this process and all its descendants at once."""
    sys.stderr.write(f"error: {reason}; this process ends\n")
    sys.stderr.flush()
    kill_processes(descendants(os.getpid()))
    os._exit(1)
