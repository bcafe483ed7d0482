"""Memory that processes of one host share by path, and that is gone as soon as nobody holds it.

A segment is an anonymous file (`memfd_create`): it has no name in /dev/shm, is not bounded by the size of /dev/shm,
and nothing is left of it when the process that made it is killed. Others of the same user open it through /proc.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


class Segment:
    """A block of memory of this process that others on this host may map."""

    def __init__(self, num_bytes: int) -> None:
        """Allocates at least one byte; pages are taken from the host as they are first written."""
        self._handle = os.memfd_create("qwenlong-weights")
        os.ftruncate(self._handle, max(1, num_bytes))
        self._map = mmap.mmap(self._handle, max(1, num_bytes))

    def __del__(self) -> None:
        """Lets go of the memory; it stays with those who have mapped it."""
        os.close(self._handle)

    @property
    def path(self) -> str:
        """Where processes of this host find the segment as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._handle}"

    @property
    def num_bytes(self) -> int:
        """Size."""
        return len(self._map)

    @property
    def data(self) -> NDArray[np.uint8]:
        """[num_bytes] the memory itself, writable."""
        return np.frombuffer(self._map, np.uint8)


class SegmentReader:
    """Maps segments of other processes, read-only, and keeps the latest mappings.

    Segments are written again and again; a mapping that is kept has its pages ready the next time.
    """

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def map(self, path: str, num_bytes: int) -> mmap.mmap:
        """[num_bytes or more] the memory behind a path.

        Raises:
            FileNotFoundError: its process is gone, or runs on another host.
            ValueError: it has fewer bytes.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < num_bytes:
                raise ValueError(
                    f"segment {path} has {status.st_size} bytes, fewer than the {num_bytes} that were announced"
                )
            if status.st_ino not in self._maps:  # a path may come to mean other memory, the inode does not
                self._maps = dict([*self._maps.items()][-1:])
                self._maps[status.st_ino] = mmap.mmap(
                    file.fileno(), status.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ
                )
            return self._maps[status.st_ino]
