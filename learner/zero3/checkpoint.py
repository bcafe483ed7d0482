"""Checkpoints of the learner: ZeRO-3 shards and random states in a folder that is either complete or absent.

A checkpoint is written under a temporary name and sealed (`curriculum/seal.py`): each rank digests the files that it
wrote, the marker `COMPLETE` is written last, and the folder is then renamed, so a run that dies while saving leaves
nothing that could be loaded by mistake. Whether a file was damaged later is checked by the driver, before any rank
starts.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError

from curriculum.config import StrictModel
from curriculum.errors import UserError, library_words
from curriculum.files import begin_folder, file_errors, finish_folder, partial_of, sync, write_text
from curriculum.seal import COMPLETE, FileDigest, digest_file, seal
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


def save(engine: DeepSpeedEngine, directory: Path, *, manifest: dict[str, Any], state: LearnerState) -> None:
    """Write weights, optimizer and random state of all ranks. Collective; every rank sees the same file system.

    Args:
        engine: the DeepSpeed engine.
        directory: final name; an earlier checkpoint of that name is replaced.
        manifest: values that must be equal when the checkpoint is loaded; plain JSON.
        state: what `load` returns.

    Raises:
        UserError: a rank cannot write its files; on all ranks, which may try again.
    """
    import torch.distributed as dist

    rank = dist.get_rank()
    partial, shard = partial_of(directory), Shard(engine)

    def finish(digests: dict[str, FileDigest]) -> None:
        write_text(partial / _MANIFEST, json.dumps({**manifest, "world_size": dist.get_world_size()}) + "\n")
        write_text(partial / _INDEX, json.dumps(shard.index) + "\n")
        write_text(partial / _STATE, json.dumps({**state.model_dump(), _STEP: shard.step}) + "\n")
        seal(partial, digests)
        finish_folder(directory)

    together(lambda: begin_folder(directory) if rank == 0 else None)
    digests = together(lambda: _write_own(shard, partial, rank, name=directory))
    together(lambda: finish({name: digest for own in digests for name, digest in own.items()}) if rank == 0 else None)


def _write_own(shard: Shard, partial: Path, rank: int, *, name: Path) -> dict[str, FileDigest]:
    """Write the files of this rank and wait until they are on disk; return their digests."""
    random_state = io.BytesIO()
    torch.save(_random_state(), random_state)
    paths = shard_file, random_file = partial / shard_name(rank), partial / f"rng_{rank}.pt"
    with file_errors(name, "written"):
        shard.save(shard_file)
        random_file.write_bytes(random_state.getvalue())
        for path in paths:
            sync(path)
        return {path.name: digest_file(path) for path in paths}


def load(engine: DeepSpeedEngine, directory: Path, *, manifest: dict[str, Any]) -> LearnerState:
    """Restore what `save` wrote and return its state. Collective.

    The number of ranks may differ from the one that saved. Weights and optimizer are then the same; rank r takes the
    random state of rank r modulo the ranks that saved.

    Raises:
        UserError: there is no complete checkpoint of that name, it was written with another manifest or by another
            version, it belongs to another model, or its files are not those of a checkpoint.
    """
    import torch.distributed as dist

    if not (directory / COMPLETE).is_file():
        raise UserError(f"{directory} is not a complete checkpoint (no {COMPLETE}); resume from an earlier one")
    with readable(directory):
        found = json.loads((directory / _MANIFEST).read_text())
        _check_manifest(directory, found, manifest)
        state, optimizer_step = read_state(directory)
        Shard(engine).restore(_shards(directory, found), step=optimizer_step)
        rank = dist.get_rank() % int(found["world_size"])
        random_state = torch.load(directory / f"rng_{rank}.pt", weights_only=True)
        _restore_random_state(random_state)
    barrier()
    return state


def read_state(directory: Path) -> tuple[LearnerState, Any]:
    """Return the state of a checkpoint, and the step of its optimizer.

    Raises:
        UserError: another version of the program wrote it.
        ValueError: it is no state.
    """
    values = json.loads((directory / _STATE).read_text())
    if missing := [name for name in (*LearnerState.model_fields, _STEP) if name not in values]:
        raise UserError(
            f"{directory}: {_STATE} has no {', '.join(missing)}: another version of the program wrote it; go on with "
            "that version, or start a new run"
        )
    optimizer_step = values.pop(_STEP)
    return LearnerState.model_validate(values), optimizer_step


def open_shards(directory: Path) -> SavedShards:
    """Return what `save` wrote, for a process without an engine; read it within `readable`."""
    return _shards(directory, json.loads((directory / _MANIFEST).read_text()))


def _shards(directory: Path, manifest: dict[str, Any]) -> SavedShards:
    index = json.loads((directory / _INDEX).read_text())
    return SavedShards(directory, index, int(manifest["world_size"]))


@contextmanager
def readable(directory: Path) -> Generator[None]:
    """Raise in one line what only files that `save` did not write can cause."""
    try:
        with file_errors(directory, "read"):
            yield
    except (ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{directory}: not the files of a checkpoint ({library_words(error)}); use an earlier one"
        ) from error


def _check_manifest(directory: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
    if different:
        text = ", ".join(f"{key}={old!r} in the checkpoint but {new!r} now" for key, (old, new) in different.items())
        raise UserError(f"{directory}: {text}; resume with the settings the checkpoint was written with")


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
