"""The end of what a process and its children write to standard error, for the reason why one of them failed."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import Self

KEPT_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
DRAIN_S = 2.0
"""Longest wait for the last words of a child that has ended."""


class OutputTail:
    """Copies standard error while a block runs: every byte goes on to where it went before, the last ones are kept.

    Children that start inside the block keep writing through the copy for as long as they live; this process writes
    directly again when the block ends.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        sys.stderr.flush()
        self._original = os.dup(2)
        source, sink = os.pipe()
        os.dup2(sink, 2)
        os.close(sink)
        self._copying = threading.Thread(target=self._copy, args=(source, os.dup(self._original)), daemon=True)
        self._copying.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()
        os.dup2(self._original, 2)
        os.close(self._original)
        if error is not None:
            self._copying.join(timeout=DRAIN_S)

    @property
    def text(self) -> str:
        """What was written, the last 256 KiB of it."""
        with self._lock:
            return self._kept.decode("utf-8", errors="replace")

    def _copy(self, source: int, target: int) -> None:
        while chunk := os.read(source, CHUNK_BYTES):
            os.write(target, chunk)
            with self._lock:
                self._kept += chunk
                del self._kept[:-KEPT_BYTES]
        os.close(source)
        os.close(target)
