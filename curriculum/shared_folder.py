"""A folder that all processes of a run reach: on a disk that every node sees, or in a storage at its URL."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from curriculum.digest import Block, FileDigest, digest_blocks
from curriculum.errors import UserError, library_words
from curriculum.files import DiskError, file_errors, sync

BLOCK_BYTES = 1 << 22
PATIENCE_S = 5.0
"""Longest time for which a file system over a network may show one node less than another node has written."""
_PAUSE_S = 0.2
_HAS_NO_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
"""Storages of objects, which would make a bucket instead."""


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """Files by name in one flat folder. It can be sent to other processes."""

    url: str
    """An absolute path, or the URL of a folder in a storage that fsspec knows."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> SharedFolder:
        return SharedFolder(f"{self.url.rstrip('/')}/{name}")

    @property
    def path(self) -> Path | None:
        """Its path where it is on a disk; None in a storage of objects."""
        files, root = self._files()
        return Path(root) if _is_disk(files) else None

    def make(self) -> None:
        """Make the folder, where there are folders.

        Raises:
            UserError: it cannot be made.
        """
        files, root = self._files()
        with self._refusals("", "written"):
            if self.url.partition("://")[0] not in _HAS_NO_FOLDERS:
                files.makedirs(root, exist_ok=True)

    def is_here(self) -> bool:
        """Return whether this process sees the folder, maybe a little late; true where there are no folders."""
        path = self.path
        return path is None or seen(path.is_dir)

    def write(self, name: str, blocks: Iterable[Block]) -> FileDigest:
        """Write a file; it is on disk, or in the storage, when this returns. A refused one leaves nothing.

        Raises:
            DiskError: it cannot be written.
        """
        files, root = self._files()
        with self._refusals(name, "written"):
            file = files.open(f"{root}/{name}", "wb")
            try:
                digest = digest_blocks(blocks, file.write)
                file.close()
                if _is_disk(files):
                    sync(Path(root, name))
            except BaseException:
                _give_up(files, file, f"{root}/{name}")
                raise
        return digest

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of a file from `start` to before `end`; fewer if it ends earlier.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        files, root = self._files()
        with self._refusals(name, "read"):
            return files.cat_file(f"{root}/{name}", start=start, end=end)

    def num_bytes(self, name: str) -> int:
        """Return the size of a file as it is now, whatever was known of it before.

        Raises:
            OSError: it is not there, or its disk does not give it.
            UserError: the storage cannot be asked.
        """
        files, root = self._files()
        with self._unreachable(name):
            files.invalidate_cache()
            return int(files.info(f"{root}/{name}")["size"])

    def digest(self, name: str, on_read: Callable[[int], None] = lambda _: None) -> FileDigest:
        """Read a file to its end and return its digest; raises as `num_bytes` does.

        Args:
            name: the file.
            on_read: is told the number of bytes of every block.
        """
        files, root = self._files()
        with self._unreachable(name), files.open(f"{root}/{name}", "rb") as file:
            return digest_blocks(iter(partial(file.read, BLOCK_BYTES), b""), lambda block: on_read(len(block)))

    def names(self) -> list[str]:
        """Return the names of its files.

        Raises:
            UserError: it cannot be read.
        """
        files, root = self._files()
        with self._refusals("", "read"):
            files.invalidate_cache()
            return sorted(str(path).rpartition("/")[2] for path in files.find(root))

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield a file from its beginning to its end.

        Raises:
            UserError: it cannot be read.
        """
        files, root = self._files()
        with self._refusals(name, "read"), files.open(f"{root}/{name}", "rb") as file:
            yield from iter(partial(file.read, BLOCK_BYTES), b"")

    def remove(self, name: str | None = None) -> None:
        """Remove a file, or the folder with all its files; what is not there is left at that.

        Raises:
            UserError: it cannot be removed.
        """
        files, root = self._files()
        with self._refusals(name or "", "written"), suppress(FileNotFoundError):
            files.invalidate_cache()
            files.rm(root if name is None else f"{root}/{name}", recursive=name is None)

    def remove_if_empty(self) -> None:
        """Remove a folder of a storage that has no files; one that is named by its path stays."""
        path = self.path
        if path is not None and "://" in self.url:
            with suppress(OSError):
                path.rmdir()

    def free_bytes(self) -> int | None:
        """Return the room on its disk as this process sees it; None in a storage of objects, which has no end."""
        path = self.path
        if path is None:
            return None
        with self._refusals("", "read"):
            return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free

    def _files(self) -> tuple[Any, str]:
        """Return the file system, and its name for this folder.

        Raises:
            UserError: there is no such storage, or the package for it is not installed.
        """
        import fsspec.core
        from fsspec.implementations.local import LocalFileSystem

        if "://" not in self.url:
            return LocalFileSystem(), self.url
        core: Any = fsspec.core
        try:
            files, root = core.url_to_fs(self.url)
        except ImportError as error:
            raise UserError(f"{self.url}: {library_words(error)}; {_package(self.url)}") from error
        except Exception as error:  # of the library of the storage, which reads credentials and the network now
            raise UserError(f"{self.url}: no such storage ({library_words(error)}); correct its address") from error
        return files, str(root).rstrip("/")

    @contextmanager
    def _refusals(self, name: str, deed: Literal["read", "written"]) -> Generator[None]:
        """Raise in one line what a disk or a storage refuses, whose libraries have errors of their own."""
        what = str(self / name) if name else self.url
        try:
            with file_errors(what, deed):
                yield
        except (UserError, GeneratorExit):
            raise
        except Exception as error:
            kind = DiskError if deed == "written" else UserError
            raise kind(
                f"{what}: cannot be {deed} ({library_words(error)}); check its address, your rights and the network"
            ) from error

    @contextmanager
    def _unreachable(self, name: str) -> Generator[None]:
        """Let through what a disk refuses, and that a file is missing; what else a storage says is not about a file."""
        try:
            yield
        except (FileNotFoundError, CancelledError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and "://" not in self.url:
                raise
            with self._refusals(name, "read"):
                raise


def _is_disk(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def seen(found: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> bool:
    """Return whether something is found, at the latest after the patience."""
    deadline = time.monotonic() + patience_s
    while not found():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def _give_up(files: Any, file: Any, path: str) -> None:
    """Leave nothing of a file that could not be written to its end, nor of an upload that has begun."""
    with suppress(Exception):
        file.discard()
    with suppress(Exception):
        file.closed = True  # closing it would upload what there is
    with suppress(Exception):
        files.rm_file(path)


def _package(url: str) -> str:
    """Return how to install what a storage needs."""
    from fsspec.registry import known_implementations

    known: dict[str, dict[str, str]] = known_implementations
    module = known.get(url.partition(":")[0], {}).get("class", "").partition(".")[0]
    return "install that on every node" if module in ("", "fsspec") else f"pip install {module} on every node"
