"""Folders that prove themselves: the digest of every file, and a marker, written last, that vouches for the digests.

A part of such a folder may lie in a storage: a note in the folder says where, and its files are proved there.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from curriculum.digest import Digests, FileDigest
from curriculum.errors import UserError, first_line
from curriculum.files import file_errors, sync, write_text
from curriculum.shared_folder import SharedFolder, seen

COMPLETE = "COMPLETE"
"""Marker of a sealed folder: the digest of its `DIGESTS`."""
DIGESTS = "digests.json"
"""Size and digest of every other file of a sealed folder, by path."""
ELSEWHERE = "elsewhere.json"
"""Where the parts of a folder lie that are not in it: their URLs by their names."""
_RANDOM_BYTES = 6
_OURS = re.compile(r"[A-Za-z0-9]+://.+/[^/]+-[0-9a-f]{12}")
"""URLs that `send_elsewhere` makes."""
_NUM_READERS = 8
_SAY_EVERY_S = 10.0
_TICK_S = 0.5


class Damaged(UserError):
    """A file of a sealed folder is not the one that was written; the message names it and says what is wrong."""


class OtherVersion(Damaged):
    """Another version of the program wrote the folder, and this one cannot go on from it; the message says why."""

    def __init__(self, what: str) -> None:
        """Take what it is, or has not."""
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.args[0]}: another version of the program wrote it; go on with that version, or start a new run"


def send_elsewhere(folder: Path, part: str, storage: str, name: str) -> None:
    """Note that a part of a folder lies in a storage, under a name that nobody has used, before it is written there.

    Args:
        folder: gets the note.
        part: name of the part.
        storage: URL.
        name: what the new name in the storage begins with.

    Raises:
        UserError: the note cannot be written.
    """
    write_text(folder / ELSEWHERE, json.dumps({part: f"{storage}/{name}-{secrets.token_hex(_RANDOM_BYTES)}"}) + "\n")


def part_of(folder: Path, part: str) -> SharedFolder:
    """Return where a part of a folder lies.

    Raises:
        Damaged: there is a note about it that nobody can read.
    """
    return SharedFolder(_elsewhere(folder).get(part) or str(folder / part))


def remove_elsewhere(folder: Path) -> None:
    """Remove the parts of a folder that lie in a storage, before the folder itself is removed.

    A note that is not ours names anything, so only what has a name of `send_elsewhere` is removed.

    Raises:
        UserError: the storage refuses.
    """
    with suppress(Damaged):  # then nobody knows what there is
        for url in _elsewhere(folder).values():
            if _OURS.fullmatch(url):
                SharedFolder(url).remove()


def _elsewhere(folder: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((folder / ELSEWHERE).read_text(encoding="utf-8"))
        return {str(part): str(url) for part, url in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{ELSEWHERE}: does not say where the parts are ({first_line(error)})") from error


def seal(folder: Path, known: Digests | None = None) -> None:
    """Write the digests of all files below a folder, then the marker; everything is on disk when this returns.

    Args:
        folder: with all its files.
        known: digests of files that need not be read, those of parts that lie elsewhere among them.

    Raises:
        UserError: a file cannot be read or written.
    """
    with file_errors(folder, "written"):
        found = dict(known or {})
        for path in sorted(folder.rglob("*")):
            sync(path)
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in (*found, COMPLETE, DIGESTS):
                found[name] = SharedFolder(str(folder)).digest(name)
    text = json.dumps({name: asdict(found[name]) for name in sorted(found)}, indent=1) + "\n"
    write_text(folder / DIGESTS, text)
    write_text(folder / COMPLETE, _digest_of(text.encode()) + "\n")


def check_seal(folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Read every file of a sealed folder and compare it with its digest.

    Args:
        folder: the folder.
        say: is told now and then how far a long check has come.

    Raises:
        Damaged: a file is missing, cannot be read, or is not the one that was sealed.
        UserError: the storage that holds a part of it cannot be reached.
    """
    check_files(folder, _read_digests(folder), say)


def check_files(
    folder: Path, digests: Digests, say: Callable[[str], None] = lambda _: None, *, patience_s: float = 0.0
) -> None:
    """Read files of a folder, and of its parts elsewhere, and compare them with their digests.

    Args:
        folder: the folder.
        digests: of files by their names in it.
        say: is told now and then how far a long check has come.
        patience_s: how long a file may be missing or short, since another node has just written it.

    Raises:
        Damaged: as `check_seal` does.
        UserError: likewise.
    """
    progress = _Progress(sum(digest.num_bytes for digest in digests.values()))
    elsewhere = {part: SharedFolder(url) for part, url in _elsewhere(folder).items()}
    said = time.monotonic()
    with ThreadPoolExecutor(_NUM_READERS) as pool:

        def check(name: str, digest: FileDigest) -> None:
            part, _, inside = name.partition("/")
            place, file = (elsewhere[part], inside) if part in elsewhere else (SharedFolder(str(folder)), name)
            _check_file(place, file, name, digest, progress, patience_s)

        waiting = {pool.submit(check, name, digest) for name, digest in digests.items()}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
                for checked in done:
                    checked.result()
                if time.monotonic() - said >= _SAY_EVERY_S:
                    said = time.monotonic()
                    say(f"checking {folder.name}: {progress} in {len(digests)} files")
        finally:
            progress.is_over = True
            pool.shutdown(cancel_futures=True)


def _check_file(
    place: SharedFolder, file: str, name: str, expected: FileDigest, progress: _Progress, patience_s: float
) -> None:
    def num_bytes() -> int | None:
        try:
            return place.num_bytes(file)
        except FileNotFoundError:
            return None

    try:
        seen(lambda: progress.is_over or num_bytes() == expected.num_bytes, patience_s=patience_s)
        if (found := place.num_bytes(file)) != expected.num_bytes:
            raise Damaged(f"{name}: has {found} bytes instead of {expected.num_bytes}")
        if place.digest(file, progress.add) != expected:
            raise Damaged(f"{name}: its content has changed (the digest differs)")
    except OSError as error:
        raise Damaged(f"{name}: {_reason(error)}") from error


def _read_digests(folder: Path) -> dict[str, FileDigest]:
    try:
        vouched = (folder / COMPLETE).read_bytes()
        text = (folder / DIGESTS).read_bytes() if vouched else None
    except OSError as error:
        raise Damaged(f"{Path(error.filename).name}: {_reason(error)}") from error
    if text is None:
        raise OtherVersion(f"{COMPLETE} is empty")
    if vouched != f"{_digest_of(text)}\n".encode():
        raise Damaged(f"{DIGESTS}: its content has changed ({COMPLETE} vouches for another)")
    try:
        values: dict[str, dict[str, Any]] = json.loads(text)
        return {name: FileDigest(**value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{DIGESTS}: is not a list of digests ({first_line(error)})") from error


def _reason(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _digest_of(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


class _Progress:
    """Counts the bytes that several threads have read."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._lock = Lock()
        self.is_over = False
        """Whether no one waits for the result any more: something is damaged, or the check was interrupted."""

    def add(self, num_bytes: int) -> None:
        """Count a block; end the thread if the check is over."""
        with self._lock:
            self._done += num_bytes
        if self.is_over:
            raise CancelledError

    def __str__(self) -> str:
        return f"{self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
