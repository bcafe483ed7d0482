"""Room for a run on its disks: tried before anything starts, and what is whole when there is none later."""

from __future__ import annotations

import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.model_folder import num_parameters
from cluster.recipe.config import RunConfig
from cluster.run.folder import RunFolder
from curriculum.errors import UserError, root_cause
from curriculum.files import DiskError, begin_folder, file_errors, write_text
from curriculum.shared_folder import SharedFolder

_BYTES_OF_STATE = 12
"""Of a parameter in a checkpoint: weight and two moments in fp32."""
_BYTES_OF_WEIGHT = {"fp32": 4, "bf16": 2}


def check_room(folder: RunFolder, config: RunConfig, model_path: str) -> None:
    """Try to write what the run will write, and compare its size with the free space.

    The sizes of a model that is not on this machine yet are not known; only the writing is tried.

    Raises:
        UserError: a folder cannot be written, or there is less space than checkpoints and models take.
    """
    keep = config.checkpoint.keep
    models = (folder.models / "trial",) if keep.stages or keep.best else ()
    for path in (folder.model, folder.checkpoints.path / "trial", *models):
        if path.is_symlink() and path.resolve().is_mount():
            raise UserError(f"{path}: is a link to the root of a disk; let it point to a folder on that disk")
        trial = begin_folder(path)
        write_text(trial / "trial", "", name=path)
        with file_errors(path, "written"):
            shutil.rmtree(trial)
    num = num_parameters(model_path)
    if num is not None:
        _compare(_needs(folder, config, num), config)


def _needs(folder: RunFolder, config: RunConfig, num: int) -> Counter[Path]:
    """Return the bytes that are still to be written, by an existing folder of each disk."""
    weights = num * _BYTES_OF_WEIGHT[config.learner.dtype]
    stages, best = _num_kept(config)
    checkpoints = (config.checkpoint.keep.last + 1 + max(0, stages - 1) + best) * num * _BYTES_OF_STATE
    needs: Counter[Path] = Counter()
    shared = _shared_disk(folder, config)
    if shared is not None:
        needs[shared] = max(0, checkpoints - _size(shared))
    if stages + best:  # the best one is replaced by a whole one
        needs[folder.models] += max(0, (stages + 2 * best) * weights - _size(folder.models))
    final = folder.model.resolve().parent
    if not stages or folder.models.stat().st_dev != final.stat().st_dev:  # else the same files as the last stage's
        needs[final] += weights
    if shared is not None and config.learner.needs_reference and not folder.reference.exists():
        needs[folder.path if config.checkpoint.storage is None else shared] += weights
    return needs


def _shared_disk(folder: RunFolder, config: RunConfig) -> Path | None:
    """Return the folder of the checkpoints, where the ranks write; None in a storage, which has no end."""
    storage = config.checkpoint.storage
    return folder.checkpoints.path if storage is None else (SharedFolder(storage) / folder.path.name).path


def _num_kept(config: RunConfig) -> tuple[int, int]:
    """Return how many stages leave checkpoint and model, and whether (1 or 0) the best step does."""
    keep = config.checkpoint.keep
    stages = len(config.curriculum.phases) + bool(config.sft.epochs) if keep.stages else 0
    return stages, int(keep.best is not None)


def _compare(needs: Mapping[Path, int], config: RunConfig) -> None:
    by_disk: dict[int, list[Path]] = defaultdict(list)
    for path in needs:
        by_disk[_existing(path).stat().st_dev].append(path)
    for paths in by_disk.values():
        needed, free = sum(needs[path] for path in paths), shutil.disk_usage(_existing(paths[0])).free
        if needed > free:
            raise UserError(
                f"{paths[0]}: the run will write {_bytes(needed)} there ({_named(config)}), {_bytes(free)} are free; "
                "free some space, lower checkpoint.keep.last, set checkpoint.keep.stages=false, or choose a folder "
                "elsewhere with --run-dir"
            )


def _named(config: RunConfig) -> str:
    stages, best = _num_kept(config)
    parts = [f"checkpoint.keep.last={config.checkpoint.keep.last}, one more while it is written"]
    parts += [f"checkpoints and models of {stages} stages"] if stages else []
    parts += ["those of the best step"] if best else []
    return ", ".join([*parts, "the model"])


def _bytes(num: int) -> str:
    return f"{num / 1e9:.1f} GB" if num >= 1e9 else f"{num / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def told_what_is_whole(folder: RunFolder) -> Generator[None]:
    """Add to a refusal of a disk what is safe, and how the run goes on.

    Raises:
        UserError: instead of a `DiskError`.
    """
    logging.raiseExceptions = False  # a log of a library that finds the disk full prints a traceback otherwise
    try:
        yield
    except DiskError as error:
        if not folder.recipe.is_file():
            raise
        newest = folder.checkpoints.newest()
        whole = "there is no checkpoint yet" if newest is None else f"checkpoint {newest.name} is whole"
        raise UserError(f"{root_cause(error)}, then go on with --resume {folder.path}: {whole}") from error
