"""Folders that prove themselves: the digest of every file, and a marker, written last, that vouches for the digests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from curriculum.errors import UserError, first_line
from curriculum.files import file_errors, sync, write_text

COMPLETE = "COMPLETE"
"""Marker of a sealed folder: the digest of its `DIGESTS`."""
DIGESTS = "digests.json"
"""Size and digest of every other file of a sealed folder, by path."""
_BLOCK_BYTES = 1 << 22
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """What tells a file from a damaged one."""

    num_bytes: int
    xxh3: str
    """128 bits in hex; against accidents, not against forgery."""


Digests = Mapping[str, FileDigest]
"""By the path of a file inside its folder."""


def digest_file(path: Path, on_read: Callable[[int], None] = lambda _: None) -> FileDigest:
    """Read a file to its end and return its digest.

    Args:
        path: the file.
        on_read: is told the number of bytes of every block.
    """
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK_BYTES))
    num_bytes = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            num_bytes += count
            on_read(count)
    return FileDigest(num_bytes=num_bytes, xxh3=digest.hexdigest())


def seal(folder: Path, known: Digests | None = None) -> None:
    """Write the digests of all files below a folder, then the marker; everything is on disk when this returns.

    Files of a folder inside that is sealed itself are not read again.

    Args:
        folder: with all its files.
        known: digests of files that need not be read.

    Raises:
        UserError: a file cannot be read or written.
    """
    with file_errors(folder, "written"):
        found = dict(known or {})
        for inner in folder.glob(f"*/{DIGESTS}"):
            prefix = inner.parent.name
            found |= {f"{prefix}/{name}": digest for name, digest in _read_digests(inner.parent).items()}
        for path in sorted(folder.rglob("*")):
            sync(path)
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in (*found, COMPLETE, DIGESTS):
                found[name] = digest_file(path)
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
    """
    digests = _read_digests(folder)
    progress = _Progress(sum(digest.num_bytes for digest in digests.values()))
    said = time.monotonic()
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        waiting = {pool.submit(_check_file, folder, name, digest, progress) for name, digest in digests.items()}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
                for check in done:
                    check.result()
                if time.monotonic() - said >= _SAY_EVERY_S:
                    said = time.monotonic()
                    say(f"checking {folder.name}: {progress} in {len(digests)} files")
        finally:
            progress.is_over = True
            pool.shutdown(cancel_futures=True)


def _check_file(folder: Path, name: str, expected: FileDigest, progress: _Progress) -> None:
    path = folder / name
    try:
        num_bytes = path.stat().st_size
        if num_bytes != expected.num_bytes:
            raise Damaged(f"{name}: has {num_bytes} bytes instead of {expected.num_bytes}")
        if digest_file(path, progress.add) != expected:
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
