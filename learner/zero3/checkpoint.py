"""The learner's part of a checkpoint: ZeRO-3 shards and random states in a folder that all ranks and the driver reach.

Every rank writes its own files and tells their sizes and digests. The driver reads them, and only then seals the
checkpoint (`cluster/run/checkpoints.py`): files that a rank has written where nobody else sees them are no checkpoint.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from curriculum.config import StrictModel
from curriculum.digest import FileDigest
from curriculum.errors import UserError, library_words
from curriculum.files import DiskError, DiskFull, file_errors
from curriculum.shared_folder import SharedFolder
from learner.collectives import barrier, together
from learner.zero3.shard import SavedShards, Shard, shard_name

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_MANIFEST = "manifest.json"
_INDEX = "index.json"
_STEP = "optimizer_step"
_STATE = "state.json"


class LearnerState(StrictModel):
    """What a checkpoint holds of the learner besides weights, optimizer and random state; the same on every rank."""

    num_steps: int = Field(ge=0)
    """Training steps of the reinforcement learning."""
    sharing_failed: bool
    """Whether the self-check of the shared prompt has failed; it looks at the first steps only."""


def save(
    engine: DeepSpeedEngine, place: SharedFolder, *, manifest: dict[str, Any], state: LearnerState
) -> dict[str, FileDigest]:
    """Write weights, optimizer and random state of this rank, rank 0 also what they share. Collective.

    Args:
        engine: the DeepSpeed engine.
        place: an empty folder that the driver has made, or one of a storage.
        manifest: values that must be equal when the checkpoint is loaded; plain JSON.
        state: what `load` returns.

    Returns:
        size and digest of the files that this rank wrote.

    Raises:
        DiskFull: there is no room for the files of all ranks; nothing was written.
        UserError: a rank does not see the folder, or cannot write its files. All ranks raise it, and may try again.
    """
    import torch.distributed as dist

    rank, shard = dist.get_rank(), Shard(engine)
    small: dict[str, Any] = {
        _MANIFEST: {**manifest, "world_size": dist.get_world_size()},
        _INDEX: shard.index,
        _STATE: {**state.model_dump(), _STEP: shard.step},
    }
    _check_room(place, shard.num_bytes, rank)
    return together(lambda: _write_own(place, shard, small if rank == 0 else {}, rank))[rank]


def _check_room(place: SharedFolder, num_bytes: int, rank: int) -> None:
    """Check that every rank sees the folder, and that what all of them write fits on its disk. Collective."""

    def look() -> tuple[int, int | None]:
        if not place.is_here():
            raise DiskError(
                f"{place}: rank {rank} does not see this folder of the driver; give a folder that every node sees with "
                "--run-dir, or set checkpoint.storage"
            )
        return num_bytes, place.free_bytes()

    found = together(look)
    needed, free = sum(need for need, _ in found), min((room for _, room in found if room is not None), default=None)
    if free is not None and needed > free:
        raise DiskFull(
            f"{place}: cannot be written (it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free); its disk is "
            "full; free some space"
        )


def _write_own(place: SharedFolder, shard: Shard, small: dict[str, Any], rank: int) -> dict[str, FileDigest]:
    """Write the files of this rank and wait until they are on disk; return their digests."""
    random_state = io.BytesIO()
    torch.save(_random_state(), random_state)
    digests = {shard_name(rank): place.write(shard_name(rank), shard.blocks())}
    digests[_random_name(rank)] = place.write(_random_name(rank), [random_state.getvalue()])
    for name, value in small.items():
        digests[name] = place.write(name, [json.dumps(value).encode() + b"\n"])
    return digests


def discard_part(place: SharedFolder, rank: int) -> None:
    """Remove what `save` has written on a rank; the folder is the driver's.

    Raises:
        UserError: something cannot be removed.
    """
    for name in (shard_name(rank), _random_name(rank), *((_MANIFEST, _INDEX, _STATE) if rank == 0 else ())):
        place.remove(name)


def _random_name(rank: int) -> str:
    return f"rng_{rank}.pt"


def load(engine: DeepSpeedEngine, place: SharedFolder, *, manifest: dict[str, Any]) -> LearnerState:
    """Restore what `save` wrote and return its state. Collective.

    The number of ranks may differ from the one that saved. Weights and optimizer are then the same; rank r takes the
    random state of rank r modulo the ranks that saved. Each rank reads its partitions only.

    Raises:
        UserError: there is no checkpoint of that name, it was written with another manifest or by another version, it
            belongs to another model, or its files are not those of a checkpoint.
    """
    import torch.distributed as dist

    with readable(place):
        found = json.loads(place.read(_MANIFEST))
        _check_manifest(place, found, manifest)
        state, optimizer_step = read_state(place)
        Shard(engine).restore(_shards(place, found), step=optimizer_step)
        rank = dist.get_rank() % int(found["world_size"])
        random_state = torch.load(io.BytesIO(place.read(_random_name(rank))), weights_only=True)
        _restore_random_state(random_state)
    barrier()
    return state


def read_state(place: SharedFolder) -> tuple[LearnerState, Any]:
    """Return the state of a checkpoint, and the step of its optimizer.

    Raises:
        UserError: another version of the program wrote it.
        ValueError: it is no state.
    """
    values = json.loads(place.read(_STATE))
    if missing := [name for name in (*LearnerState.model_fields, _STEP) if name not in values]:
        raise UserError(
            f"{place}: {_STATE} has no {', '.join(missing)}: another version of the program wrote it; go on with "
            "that version, or start a new run"
        )
    optimizer_step = values.pop(_STEP)
    return LearnerState.model_validate(values), optimizer_step


def open_shards(place: SharedFolder) -> SavedShards:
    """Return what `save` wrote, for a process without an engine; read it within `readable`."""
    return _shards(place, json.loads(place.read(_MANIFEST)))


def _shards(place: SharedFolder, manifest: dict[str, Any]) -> SavedShards:
    return SavedShards(place, json.loads(place.read(_INDEX)), int(manifest["world_size"]))


@contextmanager
def readable(place: SharedFolder) -> Generator[None]:
    """Raise in one line what only files that `save` did not write can cause."""
    try:
        with file_errors(str(place), "read"):
            yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{place}: not the files of a checkpoint ({library_words(error)}); use an earlier one"
        ) from error


def _check_manifest(place: SharedFolder, found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
    if different:
        text = ", ".join(f"{key}={old!r} in the checkpoint but {new!r} now" for key, (old, new) in different.items())
        raise UserError(f"{place}: {text}; resume with the settings the checkpoint was written with")


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.as_tensor(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
