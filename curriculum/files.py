"""Files that appear whole or not at all, locks that end with their process, and refusals of the file system."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
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


@contextmanager
def file_errors(name: Path | str, deed: Literal["read", "written"]) -> Generator[None]:
    """Raise what the file system refuses in a block as one line; keep everything but file access out of the block.

    Args:
        name: the file as a person knows it, with its recipe key or option where it has one.
        deed: what the block does to it.

    Raises:
        UserError: with the file, the reason and a way out.
    """
    try:
        yield
    except OSError as error:
        reason, way_out = error.strerror or str(error), _WAY_OUT.get(error.errno or 0, "check its disk")
        if error.errno == errno.ENOENT and deed == "written":
            way_out = "make its folder first"
        raise UserError(f"{in_line(name)}: cannot be {deed} ({reason}); {way_out}") from error


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
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_file(path: Path, *, name: Path | str | None = None) -> Generator[Path]:
    """Yield a path to write to; the file gets its own name, and replaces an earlier one, when the block ends well.

    Raises:
        UserError: it cannot get its name. Errors of the block are not changed; see `file_errors`.
    """
    partial = partial_of(path)
    try:
        yield partial
        with file_errors(name or path, "written"):
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # what went wrong is told already, and a file that got its name is gone from here
            partial.unlink()


def write_text(path: Path, text: str, *, name: Path | str | None = None) -> None:
    """Write a text file whole; it is on disk when this returns. A lone surrogate becomes its escape.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path, name=name) as partial, file_errors(name or path, "written"), partial.open("wb") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def begin_folder(path: Path) -> Path:
    """Make an empty folder under a hidden name beside `path`; `finish_folder` gives it its own.

    Raises:
        UserError: it cannot be made.
    """
    partial = partial_of(path)
    with file_errors(path, "written"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def finish_folder(path: Path) -> None:
    """Give the folder of `begin_folder` its name; an earlier one is kept until then, and is deleted."""
    replaced = path.with_name(f".{path.name}.replaced")
    with file_errors(path, "written"):
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        partial_of(path).rename(path)
        shutil.rmtree(replaced, ignore_errors=True)


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
