"""A model that rank 0 writes for all ranks: on a disk that they share, or through a storage and a scratch folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from curriculum.digest import FileDigest
from curriculum.errors import UserError
from curriculum.files import DiskError, file_errors, private_files
from curriculum.shared_folder import SharedFolder, seen
from learner.collectives import barrier, together

_SCRATCH = "qwenlong-model-"


def publish_model(place: SharedFolder, write: Callable[[Path], None], *, rank: int) -> dict[str, FileDigest]:
    """Write a model where all ranks and the driver find it. Collective.

    Args:
        place: on a disk, a folder that is not there yet, in one that the driver has made.
        write: collective; writes the folder on rank 0, whole.
        rank: this rank.

    Returns:
        on rank 0 size and digest of every file; nothing on the others.

    Raises:
        UserError: rank 0 cannot write it, or does not see the folder of the driver.
    """
    path = place.path
    if path is not None:
        together(lambda: _check_sees(path) if rank == 0 else None)
        write(path)
        return together(lambda: _digests(place) if rank == 0 else {})[rank]
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
        own = SharedFolder(str(Path(scratch) / "model"))
        write(Path(own.url))
        return together(lambda: _upload(own, place) if rank == 0 else {})[rank]


@contextmanager
def model_nearby(place: SharedFolder, *, node: str, rank: int) -> Generator[str]:
    """Yield a folder of this node with a model of `publish_model`, for as long as it is read. Collective.

    From a storage one rank of each node fetches it into a scratch folder, which is removed again.

    Args:
        place: of the model.
        node: the same text on the ranks that see each other's scratch folders.
        rank: this rank.

    Raises:
        UserError: it cannot be read, or there is no room for it.
    """
    if place.path is not None:
        yield str(place.path)
        return
    nodes = together(lambda: node)
    first = nodes.index(node)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH)) if first == rank else None
    try:
        paths = together(lambda: _fetch(place, scratch))
        yield str(paths[first])
        barrier()
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_sees(path: Path) -> None:
    if not seen(path.parent.is_dir):
        raise DiskError(
            f"{path}: rank 0 does not see the folder of the driver; give one that every node sees with --run-dir, or "
            "set checkpoint.storage"
        )


def _digests(place: SharedFolder) -> dict[str, FileDigest]:
    with file_errors(str(place), "read"):
        return {name: place.digest(name) for name in place.names()}


def _upload(own: SharedFolder, place: SharedFolder) -> dict[str, FileDigest]:
    return {name: place.write(name, own.blocks(name)) for name in own.names()}


def _fetch(place: SharedFolder, scratch: Path | None) -> Path | None:
    """Copy the files of a model into a scratch folder, if this rank has one; return it."""
    if scratch is None:
        return None
    names = place.names()
    with file_errors(str(place), "read"):
        needed, free = sum(place.num_bytes(name) for name in names), shutil.disk_usage(scratch).free
    if needed > free:
        raise UserError(
            f"{scratch}: {place} takes {needed / 1e6:.1f} MB there while it is read, {free / 1e6:.1f} MB are free; "
            "free some space, or set TMPDIR on that node to a larger disk before its ray start"
        )
    with private_files():
        for name in names:
            SharedFolder(str(scratch)).write(name, place.blocks(name))
    return scratch
