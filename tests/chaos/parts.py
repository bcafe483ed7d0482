"""The processes of a running command, by the part that they play, and what they are doing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

from tests.chaos.nodes import TwoNodes
from tests.harness.command import Command

ACTORS = {
    "rollout": "ray::RolloutActor",
    "judge": "ray::JudgeActor",
    "learner": "ray::LearnerActor",
    "coordinator": "ray::CoordinatorActor",
}
ENGINE = "VLLM::EngineCore"
DAEMONS = {"raylet": "/raylet/raylet ", "gcs": "/gcs/gcs_server ", "ray head": "-m actors.ray_head "}
MOMENT_S = 30.0
"""Longest wait for a process to do what it is to be hit in."""


class Parts:
    """Finds processes of a command and notes all of them, so that none can be overlooked at the end."""

    def __init__(self, command: Command, rng: Random, nodes: TwoNodes | None) -> None:
        self._command = command
        self._rng = rng
        self._nodes = nodes
        self._seen: dict[int, int] = {}

    def look(self) -> list[tuple[int, str]]:
        """Process ids and command lines of everything that belongs to the command."""
        actors = [actor for command in self._nodes.commands for actor in _actors(command)] if self._nodes else []
        found = self._command.processes() + actors
        self._seen |= {pid: started for pid, _ in found if (started := start_time(pid)) is not None}
        return found

    def has_actors(self, command: Command) -> bool:
        """Whether an actor of the run is a descendant of this command."""
        return bool(_actors(command))

    def find(self, part: str) -> int:
        """Process id of a part; of several that play it, one by chance.

        Raises:
            AssertionError: nobody plays it.
        """
        if part == "driver":
            return self._command.process.pid
        deadline = time.monotonic() + MOMENT_S
        while not (found := self._playing(part)):
            if time.monotonic() > deadline or self._command.process.poll() is not None:
                raise AssertionError(f"there is no {part} process")
            time.sleep(0.1)
        return self._rng.choice(found)

    def survivors(self, patience_s: float) -> list[str]:
        """Command lines of noted processes that are still there after the patience."""
        deadline = time.monotonic() + patience_s
        while True:
            left = [title(pid) for pid, started in self._seen.items() if start_time(pid) == started]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def _playing(self, part: str) -> list[int]:
        processes = self.look()
        if part in DAEMONS:
            return [pid for pid, command in processes if DAEMONS[part] in command]
        if part in ACTORS:
            return [pid for pid, command in processes if command.startswith(ACTORS[part])]
        owners = self._playing(part.removesuffix(" engine"))
        return [pid for pid, command in processes if command.startswith(ENGINE) and parent(pid) in owners]


def _actors(command: Command) -> list[tuple[int, str]]:
    """Actors and their engines among the processes of a command."""
    titles = (*ACTORS.values(), ENGINE)
    return [(pid, title) for pid, title in command.processes() if title.startswith(titles)]


def wait_until_in(pid: int, *methods: str) -> None:
    """Return as soon as an actor is in one of these methods, which Ray shows in its title, or after a while anyway."""
    deadline = time.monotonic() + MOMENT_S
    while time.monotonic() < deadline:
        now = title(pid)
        if not now or any(now.endswith("." + method) for method in methods):
            return
        time.sleep(0.001)


def title(pid: int) -> str:
    """Command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def parent(pid: int) -> int | None:
    """Process id of the parent."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def start_time(pid: int) -> int | None:
    """When a process started (ticks since boot); None when it has ended, also if nobody has collected it yet."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
