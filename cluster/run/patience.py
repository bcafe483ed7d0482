"""Waiting for a full disk to get room, aloud and for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import TypeVar

from curriculum.errors import root_cause
from curriculum.files import DiskFull

_T = TypeVar("_T")

LIMIT_S = 300.0
"""Longest time that a write waits for room."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between the tries; the last one repeats."""


class Patience:
    """Repeats writes that found the disk full.

    Consumes: nothing.  Waits for: room on a disk.  Unblocked by: the room, the limit, or a stop of the run.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        stop: asyncio.Event,
        *,
        limit_s: float = LIMIT_S,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """Take who is told of every pause, and the event that asks the run to stop."""
        self._say = say
        self._stop = stop
        self._limit_s = limit_s
        self._pauses_s = pauses_s

    async def until_room(self, write: Callable[[], Awaitable[_T]]) -> _T:
        """Call `write` until it finds room; return its result.

        Raises:
            DiskFull: there was none within the limit, or the run is to stop.
        """
        deadline: float | None = None
        for pause in chain(self._pauses_s, repeat(self._pauses_s[-1])):
            try:
                return await write()
            except DiskFull as error:
                deadline = deadline or time.monotonic() + self._limit_s
                left = deadline - time.monotonic()
                if left < pause or self._stop.is_set():
                    raise
                self._say(f"{root_cause(error)}; trying again in {pause:g} s, for {left:.0f} s more")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
        raise AssertionError("the pauses never end")
