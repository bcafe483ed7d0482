"""Files of JSON lines that only grow: a line is written whole, or waits for room on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from curriculum.files import DiskFull, file_errors, sync
from curriculum.printable import printable_json

_TAIL_BYTES = 1 << 16


class JsonLines:
    """One file; lines reach it in the order of the calls, which may come from several threads."""

    def __init__(self, path: Path) -> None:
        """Take the path; the file is made with the first line."""
        self.path = path
        self._waiting: list[bytes] = []
        self._lock = Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; on a full disk it waits in memory for the next call.

        Raises:
            UserError: the file cannot be written for any other reason.
        """
        self._waiting.append(printable_json(json.dumps(record, ensure_ascii=False)).encode() + b"\n")
        with suppress(DiskFull):
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait; a line that does not fit leaves no part of itself.

        Raises:
            DiskFull: there is no room for them; they go on waiting.
            UserError: the file cannot be written for any other reason.
        """
        if not self._waiting:
            return
        with self._lock, file_errors(self.path, "written"), self.path.open("ab", buffering=0) as file:
            while self._waiting:
                start = file.tell()
                try:
                    _write(file.fileno(), self._waiting[0])
                except OSError:
                    os.ftruncate(file.fileno(), start)
                    raise
                del self._waiting[0]

    def sync(self) -> None:
        """Write the lines that wait, and return when all are on disk; raises as `flush` does."""
        self.flush()
        with file_errors(self.path, "written"):
            if self.path.exists():
                sync(self.path)

    def repair(self) -> str | None:
        """Cut a last line that a dead writer left unfinished; return what was done, None if nothing.

        Raises:
            UserError: the file cannot be read or written.
        """
        with file_errors(self.path, "written"):
            if not self.path.exists():
                return None
            with self.path.open("rb+") as file:
                end = file.seek(0, os.SEEK_END)
                whole = _end_of_last_line(file.fileno(), end)
                if whole == end:
                    return None
                file.truncate(whole)
        return f"{self.path.name}: its last line was unfinished; removed {end - whole} bytes"


def _write(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _end_of_last_line(descriptor: int, end: int) -> int:
    """Return the position after the last line break; 0 without one."""
    while end:
        start = max(0, end - _TAIL_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
