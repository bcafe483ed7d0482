"""Files that appear whole or not at all, locks that end with their process, and refusals of the file system."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Literal

from curriculum.errors import UserError, in_line

_WAY_OUT = {
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "choose another name",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "its disk is read-only; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "its disk is full; free some space",
    errno.EDQUOT: "its quota is used up; free some space",
}

PRIVATE = 0o077
"""Umask of files that hold data, answers or weights: nobody but their user reads them."""


@contextmanager
def private_files() -> Generator[None]:
    """Let what this process and its children create in a block be readable by their user alone."""
    before = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(before)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EROFS, errno.EIO)
_FOREIGN_NUMBER = re.compile(r"\(os error (\d+)\)")
"""The number of a refusal in the text of a library that does not raise `OSError`, as safetensors and tokenizers."""


class DiskError(UserError):
    """A disk does not take what a command writes: it is full, read-only or broken."""


class DiskFull(DiskError):
    """A disk has no room, or a quota is used up: it may have some later."""


@contextmanager
def file_errors(name: Path | str, deed: Literal["read", "written"]) -> Generator[None]:
    """Raise what the file system refuses in a block as one line; keep everything but file access out of the block.

    Args:
        name: the file as a person knows it, with its recipe key or option where it has one.
        deed: what the block does to it.

    Raises:
        DiskFull: there is no room for it.
        DiskError: the disk cannot be written at all.
        UserError: for any other reason; all with the file, the reason and a way out.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        reason = os.strerror(number) if number else str(error)
        way_out = _WAY_OUT.get(number, "check its disk")
        if number == errno.ENOENT and deed == "written":
            way_out = "make its folder first"
        raise _kind(number, deed)(f"{in_line(name)}: cannot be {deed} ({reason}); {way_out}") from error


def _error_number(error: Exception) -> int | None:
    """Return the number of a refusal of the file system, 0 for one without, None for any other error."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = None if isinstance(error, UserError) else _FOREIGN_NUMBER.search(str(error))
    return int(found[1]) if found else None


def _kind(number: int, deed: Literal["read", "written"]) -> type[UserError]:
    if deed == "written" and number in _FULL:
        return DiskFull
    return DiskError if deed == "written" and number in _UNWRITABLE else UserError


def check_writable(path: Path, *, name: str) -> None:
    """Check, before the work whose result it is to hold, that a file can be written; nothing is left there.

    Raises:
        UserError: it is a folder, its own folder does not exist, or it cannot be written.
    """
    with file_errors(name, "written"):
        if path.is_dir():
            raise UserError(f"{name}: is a folder; name a file in it")
        if not path.absolute().parent.is_dir():
            raise UserError(f"{name}: the folder {path.parent} does not exist; make it first")
        partial = partial_of(path)
        partial.open("ab").close()
        partial.unlink()


def expanded(path: str, *, name: str) -> Path:
    """Return a path with `~` and `~user` replaced by the home directory.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise UserError(f"{name}: there is no user {user.lstrip('~')} here; give the path in full") from error


def partial_of(path: Path) -> Path:
    """Return the hidden name beside a file or folder under which it is written before it gets its own."""
    return _hidden(_target(path), "partial")


@contextmanager
def whole_file(path: Path, *, name: Path | str | None = None) -> Generator[Path]:
    """Yield a path to write to; the file gets its own name, and replaces an earlier one, when the block ends well.

    It is on disk then. A link is followed.

    Raises:
        UserError: it cannot get its name. Errors of the block are not changed; see `file_errors`.
    """
    partial, target = partial_of(path), _target(path)
    try:
        yield partial
        with file_errors(name or path, "written"):
            sync(partial)
            os.replace(partial, target)
            sync(target.parent)
    finally:
        with suppress(OSError):  # what went wrong is told already, and a file that got its name is gone from here
            partial.unlink()


def write_text(path: Path, text: str, *, name: Path | str | None = None) -> None:
    """Write a text file whole; it is on disk when this returns. A lone surrogate becomes its escape.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path, name=name) as partial, file_errors(name or path, "written"):
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk; a folder may refuse it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EACCES):
            raise


def begin_folder(path: Path) -> Path:
    """Make an empty folder under a hidden name beside `path`; `finish_folder` gives it its own. A link is followed.

    Raises:
        UserError: it cannot be made.
    """
    partial = partial_of(path)
    with file_errors(path, "written"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def _nothing(_: Path) -> None:
    """Do nothing before a folder is deleted."""


def finish_folder(path: Path, *, first: Callable[[Path], None] = _nothing) -> None:
    """Give the folder of `begin_folder` its name, once it is on disk; an earlier one is kept until then, and deleted.

    Args:
        path: its own name.
        first: called with the earlier folder before it is deleted.

    Raises:
        UserError: it cannot be written to its end.
    """
    target, partial = _target(path), partial_of(path)
    replaced = _hidden(target, "replaced")
    with file_errors(path, "written"):
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        sync(target.parent)
        first(replaced)
        shutil.rmtree(replaced, ignore_errors=True)


def discard_folder(path: Path) -> None:
    """Remove the folder of `begin_folder`, so that what could not be finished takes no room."""
    shutil.rmtree(partial_of(path), ignore_errors=True)


def remove_folder(path: Path, *, first: Callable[[Path], None] = _nothing) -> None:
    """Remove a folder such that one that is half removed never has its name; `first` is called before it is deleted."""
    removed = _hidden(path, "removed")
    with file_errors(path, "written"):
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        first(removed)
        shutil.rmtree(removed, ignore_errors=True)


def clear_leftovers(folder: Path, name: str | None = None, *, first: Callable[[Path], None] = _nothing) -> None:
    """Remove what killed writers left in a folder; what was killed between two names gets the newer one.

    Args:
        folder: no one else may be writing in it.
        name: look for the leftovers of this file or folder alone; None for those of all.
        first: called with every folder among them before it is deleted.

    Raises:
        UserError: something cannot be removed.
    """
    pattern = "*" if name is None else escape(name)
    with file_errors(folder, "written"):
        for replaced in folder.glob(f".{pattern}.replaced"):
            path = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
            if not path.exists():
                newer = partial_of(path)
                (newer if newer.exists() else replaced).rename(path)
        kinds = ("partial", "replaced", "removed")
        for leftover in [path for kind in kinds for path in folder.glob(f".{pattern}.{kind}")]:
            if leftover.is_dir():
                first(leftover)
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _target(path: Path) -> Path:
    """Return what a link points to, also where nothing is yet; any other path as it is."""
    return path.resolve() if path.is_symlink() else path


def _hidden(path: Path, kind: Literal["partial", "replaced", "removed"]) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def lock_file(path: Path, *, busy: str) -> IO[bytes]:
    """Lock a file, made where there is none, against every other process; closing it, or a death, ends the lock.

    Raises:
        UserError: another process holds the lock (with the text `busy`), or the file cannot be opened.
    """
    with file_errors(path, "written"):
        file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(busy) from None
    return file
