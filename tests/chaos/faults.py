"""The catalogue: what is done to a run, how it must be named, and whether the run may end of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos.disk import SmallDisk
from tests.chaos.nodes import TwoNodes
from tests.chaos.parts import Parts, send, wait_until_in
from tests.harness.command import Command
from tests.harness.workshop import Run

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
INTERRUPTED = 130
FULL_DISK = "full disk"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a fault can reach."""

    run: Run
    command: Command
    parts: Parts
    disk: SmallDisk
    nodes: TwoNodes | None
    """The Ray that the run has joined; None where it started its own."""
    rng: Random


Strike = Callable[[Scene], float]
"""Does it, at a moment of its own choice; returns when (`time.monotonic`)."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    strike: Strike
    named_by: str | None
    """Pattern of the line that names it; None where nobody is left who could."""
    ends: tuple[int, ...] = ()
    """Exit statuses with which the command may end; none where it must go on by itself."""
    undo: Callable[[Scene], None] | None = None
    """What a person does once it has been named."""
    damage: Callable[[Run, Random], str] | None = None
    """What is done to the run folder before the resume; returns the pattern of the line that names it."""
    lag: int | None = None
    """The policy lag of the run that suffers it; None for any."""
    needs_nodes: bool = False
    """Whether the run must have joined a Ray of two nodes."""


def catalogue() -> list[Fault]:
    """Every fault there is, each once."""
    return [*_engine_faults(), *_training_faults(), *_ray_faults(), *_driver_faults(), *_disk_faults()]


def _engine_faults() -> list[Fault]:
    moments = {"generating": ("next_group",), "receiving weights": ("load_weights",)}
    rollouts = [
        _signal(part, number, moment, methods, named_by="rollout-0", of="rollout")
        for part in ("rollout", "rollout engine")
        for number in (KILL, STOP)
        for moment, methods in moments.items()
    ]
    judges = [
        _signal(part, number, "judging", ("score_group",), named_by="judge-0", of="judge")
        for part in ("judge", "judge engine")
        for number in (KILL, STOP)
    ]
    return rollouts + judges


def _training_faults() -> list[Fault]:
    moments = {"learning": ("accumulate", "update"), "sending weights": ("publish_weights",), "saving": ("save",)}
    learners = [
        _signal("learner", KILL, moment, methods, named_by="learner", lag=lag)
        for lag, moments_of_lag in {0: ("learning", "saving"), 2: ("learning", "sending weights")}.items()
        for moment, methods in moments.items()
        if moment in moments_of_lag
    ]
    frozen = [_signal("learner", STOP, "learning", moments["learning"], named_by="learner", lag=lag) for lag in (0, 2)]
    coordinator = [_signal("coordinator", number, "", (), named_by="coordinator") for number in (KILL, STOP)]
    return learners + frozen + coordinator


def _ray_faults() -> list[Fault]:
    named = {"named_by": "Ray's (head|process)", "ends": (1,)}
    late = {**named, "ends": (1, 0)}  # a run that needs nothing of it any more comes to its end
    hit = [(part, number) for part in ("raylet", "gcs") for number in (KILL, STOP)]
    lost = Fault(
        name="lose a node and its objects",
        strike=_lose_node,
        named_by="^fault: |process is gone",
        undo=lambda scene: scene.nodes.replace(),
        lag=2,
        needs_nodes=True,
    )
    return [
        lost,
        *[
            _signal(part, number, "", (), **(late if (part, number) == ("raylet", STOP) else named))
            for part, number in [*hit, ("ray head", KILL)]
        ],
    ]


def _driver_faults() -> list[Fault]:
    asked = {"named_by": "stopp|interrupt", "ends": (INTERRUPTED,)}
    return [
        _signal("driver", KILL, "", (), named_by=None, ends=(-KILL,), lag=2),
        Fault(name="kill driver in a checkpoint", strike=_kill_in_checkpoint, named_by=None, ends=(-KILL,)),
        Fault(name="stop driver for a while", strike=_pause_driver, named_by=None),
        Fault(name="SIGTERM", strike=partial(_to_driver, signal.SIGTERM), **asked),
        Fault(name="SIGTERM to group", strike=partial(_to_group, signal.SIGTERM), **asked),
        Fault(name="SIGINT to group", strike=partial(_to_group, signal.SIGINT), **asked),
        Fault(name="SIGHUP to group", strike=partial(_to_group, signal.SIGHUP), **asked),
        Fault(name="two signals at once", strike=_twice, named_by="stopp|interrupt", ends=(INTERRUPTED, 143)),
    ]


def _disk_faults() -> list[Fault]:
    kill = {"strike": partial(_hit, "driver", KILL, ()), "named_by": None, "ends": (-KILL,)}
    return [
        Fault(
            name=FULL_DISK,
            strike=_fill,
            named_by="(?i)no space|full",
            ends=(1, 2),
            undo=lambda scene: scene.disk.free(),
        ),
        Fault(name="flipped bit in a checkpoint", damage=flip_a_bit, **kill),
        Fault(name="cut file in a checkpoint", damage=cut_a_file, **kill),
    ]


# strikes ---------------------------------------------------------------------------------------------------------


def _signal(
    part: str,
    number: signal.Signals,
    moment: str,
    methods: tuple[str, ...],
    *,
    named_by: str | None,
    of: str | None = None,
    ends: tuple[int, ...] = (),
    lag: int | None = None,
) -> Fault:
    deed = {KILL: "kill", STOP: "stop"}[number]
    name = f"{deed} {part} {moment}".strip() + (" at lag 2" if lag == 2 else "")
    strike = partial(_hit, part, number, methods, of=of)
    return Fault(name=name, strike=strike, named_by=named_by, ends=ends, lag=lag)


def _hit(part: str, number: signal.Signals, methods: tuple[str, ...], scene: Scene, *, of: str | None = None) -> float:
    """Send a signal to a part while the actor that it belongs to is in one of the methods."""
    while True:
        pid = scene.parts.find(part)
        if methods:
            wait_until_in(scene.parts.find(of) if of else pid, *methods)
        time.sleep(scene.rng.uniform(0, 0.02))
        now = time.monotonic()
        try:
            send(pid, number)
        except ProcessLookupError:
            continue  # it was just being replaced
        return now


def _kill_in_checkpoint(scene: Scene) -> float:
    """Kill the driver while a checkpoint is written."""
    scene.command.wait_for(lambda: list(scene.run.folder.glob("checkpoints/.*.partial")), "checkpoint", 60, poll_s=1e-3)
    time.sleep(scene.rng.uniform(0, 0.01))
    return _to_driver(KILL, scene)


def _pause_driver(scene: Scene) -> float:
    """Stop the driver as Ctrl-Z does, and let it go on."""
    _to_driver(STOP, scene)
    time.sleep(scene.rng.uniform(3, 12))
    return _to_driver(signal.SIGCONT, scene)


def _lose_node(scene: Scene) -> float:
    """Lose the node beside the head: groups that wait for their batch lie in its memory, and actors run on it."""
    assert scene.nodes is not None
    assert scene.parts.has_actors(scene.nodes.commands[1]), "no actor was placed on the second node"
    return scene.nodes.lose()


def _to_driver(number: signal.Signals, scene: Scene) -> float:
    now = time.monotonic()
    send(scene.command.process.pid, number)
    return now


def _to_group(number: signal.Signals, scene: Scene) -> float:
    """As terminals, `timeout` and schedulers do."""
    now = time.monotonic()
    os.killpg(scene.command.process.pid, number)
    return now


def _twice(scene: Scene) -> float:
    now = _to_group(signal.SIGTERM, scene)
    _to_group(signal.SIGINT, scene)
    return now


def _fill(scene: Scene) -> float:
    scene.disk.fill()
    return time.monotonic()


# damage ----------------------------------------------------------------------------------------------------------


def flip_a_bit(run: Run, rng: Random) -> str:
    """Flip one bit of one file of the newest checkpoint; a large file is likelier."""
    checkpoint, file = _a_file(run, rng)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{checkpoint.name} is damaged"


def cut_a_file(run: Run, rng: Random) -> str:
    """Cut one file of the newest checkpoint short."""
    checkpoint, file = _a_file(run, rng)
    os.truncate(file, rng.randrange(file.stat().st_size))
    return f"{checkpoint.name} is damaged"


def _a_file(run: Run, rng: Random) -> tuple[Path, Path]:
    newest = max(path.parent for path in run.folder.glob("checkpoints/step-*[0-9]/COMPLETE"))
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    return newest, rng.choices(files, weights=[path.stat().st_size for path in files])[0]
