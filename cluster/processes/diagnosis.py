"""What is known at the moment in which something is found to stand still, written for a person."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.state import list_actors

from curriculum.heartbeat import Heartbeat

STACKS_S, ALL_STACKS_S = 5.0, 20.0
"""Longest wait for the stacks of one process, and of all."""


class Described(Protocol):
    """An actor, as the watch sees it."""

    name: str
    beat: Heartbeat | None

    def complaint(self, now: float) -> str:
        """Say what is missing and since when."""
        ...


class Diagnosis:
    """The file `diagnosis.txt` of a run; every standstill adds a section."""

    def __init__(self, path: Path) -> None:
        """Take the file; it is written only when it is needed."""
        self.path = path
        self.facts: Callable[[], Mapping[str, Any]] = dict
        """Numbers of the loop: versions, queue depths."""

    def write(self, reason: str, actors: Sequence[Described], *, ray_answers: bool = True) -> None:
        """Add a section: heartbeats, queues, nodes, states of the actors, stacks of the processes on this node.

        The first of `actors` is the one to blame, if one is; without an answering Ray some of it is left out.
        """
        parts = [
            f"==== {time.strftime('%Y-%m-%d %H:%M:%S')}  {reason}",
            "---- heartbeats (last answers)",
            *(f"{actor.name}: {actor.beat or 'starting'}; {actor.complaint(time.monotonic())}" for actor in actors),
            "---- loop",
            json.dumps(_attempt(self.facts), indent=1, default=str),
            "---- nodes",
            json.dumps(_attempt(_nodes) if ray_answers else "unknown", indent=1, default=str),
            "---- actors, as Ray sees them",
            *(_attempt(_states) if ray_answers else ("unknown",)),
            *(_all_stacks(actors) if ray_answers else ()),
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join(parts) + "\n\n")


def _attempt(ask: Callable[[], Any]) -> Any:
    """Return the answer, or the error that there was instead."""
    try:
        return ask()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def _nodes() -> dict[str, Any]:
    return {"total": ray.cluster_resources(), "free": ray.available_resources()}


def _states() -> list[str]:
    states: Any = list_actors
    return [f"{actor.name} {actor.class_name} {actor.state} pid {actor.pid}" for actor in states(timeout=5)]


def _all_stacks(actors: Sequence[Described]) -> list[str]:
    started, parts = time.monotonic(), list[str]()
    for actor in actors:
        if time.monotonic() - started < ALL_STACKS_S:
            parts += _stacks(actor)
    return parts


def _stacks(actor: Described) -> list[str]:
    """Return the stacks of an actor's processes through py-spy, where it is installed and they run on this node."""
    py_spy = shutil.which("py-spy")
    beat = actor.beat
    if beat is None or beat.node_id != ray.get_runtime_context().get_node_id():
        return [f"---- stacks of {actor.name}: none, it does not run on this node"]
    if py_spy is None:
        os.kill(beat.pid, signal.SIGUSR1)  # see `Pulse`
        return [f"---- stacks of {actor.name}: in its log under logs/, unless it is frozen; py-spy is not installed"]
    return [f"---- stacks of {actor.name}, process {pid}\n{_dump(py_spy, pid)}" for pid in (beat.pid, *beat.children)]


def _dump(py_spy: str, pid: int) -> str:
    try:
        done = subprocess.run(
            [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True, text=True, timeout=STACKS_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none: {error}"
    return done.stdout or done.stderr
