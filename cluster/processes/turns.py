"""Turns on shared GPUs: engines and learner work one after the other, and whoever rests has given its memory back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Protocol

from cluster.run.waits import Waits


class Side(StrEnum):
    """Who works."""

    ENGINES = "engines"
    LEARNER = "learner"


class SleepingEngines(Protocol):
    """Engines that can sleep."""

    async def sleep(self) -> None:
        """Let every engine give its memory back."""
        ...

    async def wake_up(self) -> None:
        """Let every engine take its memory again; one that was restarted meanwhile is loaded and brought up to date."""
        ...


class RestingLearner(Protocol):
    """A learner that can rest."""

    async def rest(self) -> None:
        """Let every rank give back what it does not hold between two steps."""
        ...


class Turns:
    """Whose turn it is.

    A call of one side holds the turn until it returns; several calls of one side hold it together. Engines are awake
    when the turns begin.

    Consumes: nothing.  Waits for: the calls of the other side, then its memory.  Unblocked by: their end.
    """

    def __init__(self, waits: Waits | None = None) -> None:
        """Begin without the two sides, which know the turns: `take` names them."""
        self._waits = waits or Waits()
        self._side = Side.ENGINES
        self._num_calls = 0
        """Calls under way of the side whose turn it is."""
        self._changing = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._engines: SleepingEngines | None = None
        self._learner: RestingLearner | None = None

    def take(self, engines: SleepingEngines, learner: RestingLearner) -> None:
        """Take the two sides."""
        self._engines, self._learner = engines, learner

    @asynccontextmanager
    async def of(self, side: Side) -> AsyncGenerator[None]:
        """Hold the turn of a side during the block; first wait for the calls of the other one, and change the turn."""
        async with self._changing:
            if self._side is not side:
                await self._idle.wait()
                await self._change_to(side)
            self._num_calls += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._idle.set()

    async def _change_to(self, side: Side) -> None:
        """Take the memory from one side, then give it to the other."""
        assert self._engines is not None
        assert self._learner is not None
        if side is Side.LEARNER:
            with self._waits.on("engines to fall asleep"):
                await self._engines.sleep()
        else:
            await self._learner.rest()
            with self._waits.on("engines to wake up"):
                await self._engines.wake_up()
        self._side = side
