"""Waits that are spoken of: what stands still is named, again at doubling intervals, and when it goes on."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator
from enum import StrEnum


class Sound(StrEnum):
    """What there is to say."""

    STILL = "still"
    """It has stood still for long enough to be named, or named again."""
    ON = "on"
    """It was named and goes on."""


class Voice:
    """When something that stands still is spoken of: after `notice_s`, at doubling intervals, and when it goes on."""

    def __init__(self, notice_s: float) -> None:
        self._notice_s = notice_s
        self._next_s = notice_s
        self.longest_s = 0.0
        """How long it had stood still when it was last named."""

    def hear(self, still_s: float) -> Sound | None:
        """Take how long it has stood still (seconds); return what to say, if anything."""
        if still_s >= self._next_s:
            self.longest_s = still_s
            while self._next_s <= still_s:
                self._next_s *= 2
            return Sound.STILL
        if still_s < self.longest_s:
            self.longest_s, self._next_s = 0.0, self._notice_s
            return Sound.ON
        return None


class Wait:
    """One wait of the driver."""

    def __init__(self, what: str, voice: Voice, now: float, *, is_bounded: bool, is_quiet: bool) -> None:
        self.what = what
        self.voice = voice
        self.since = now
        """When it began, or something last arrived that was waited for."""
        self.is_bounded = is_bounded
        """Whether it has a bound of its own, and needs no other."""
        self.is_quiet = is_quiet
        """Whether it is not spoken of by itself, because those it waits for are."""


class Waits:
    """What the driver waits for at the moment; written by the loop, read by the thread that speaks."""

    def __init__(self, notice_s: float = 30.0, *, now: Callable[[], float] = time.monotonic) -> None:
        self._notice_s = notice_s
        self._now = now
        self._waits: dict[int, Wait] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def on(
        self, what: str, *, is_bounded: bool = False, is_quiet: bool = False, notice_s: float | None = None
    ) -> Generator[Wait]:
        """Name what the block waits for.

        Args:
            what: shown behind "waiting for".
            is_bounded: the block ends the wait by itself.
            is_quiet: those that are waited for are spoken of instead.
            notice_s: when it is spoken of first; None as for any other wait.
        """
        number = next(self._ids)
        wait = Wait(what, Voice(notice_s or self._notice_s), self._now(), is_bounded=is_bounded, is_quiet=is_quiet)
        with self._lock:
            self._waits[number] = wait
        try:
            yield wait
        finally:
            with self._lock:
                del self._waits[number]

    def progress(self) -> None:
        """Note that something arrived: nothing that is waited for stands still."""
        for wait in self.now():
            wait.since = self._now()

    def now(self) -> list[Wait]:
        """Return the waits that are under way."""
        with self._lock:
            return list(self._waits.values())

    def overdue(self) -> list[tuple[Wait, float]]:
        """Return the waits to speak of now, with how long each has lasted (seconds)."""
        return [
            (wait, still_s)
            for wait in self.now()
            if not wait.is_quiet and wait.voice.hear(still_s := self._now() - wait.since) is Sound.STILL
        ]
