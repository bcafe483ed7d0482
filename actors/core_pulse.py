"""The pulse of an engine's core, the process that computes: it answers a question between any two of its steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


class CorePulse:
    """One open question to the core at a time.

    A prompt of 60 000 tokens is prefilled in many steps, and the core answers after each; a core that is stopped or
    hangs in a step does not answer, whether it has requests or not.
    """

    def __init__(
        self, ask: Callable[[], Coroutine[Any, Any, Any]], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take a cheap question that the core answers."""
        self._ask = ask
        self._now = now
        self._question: asyncio.Task[Any] | None = None
        self._asked_at = 0.0

    def still_s(self) -> float:
        """Return for how long the question has been open (seconds), and ask the next one if it was answered.

        Call it in the event loop of the engine.
        """
        if self._question is None or self._question.done():
            self._asked_at = self._now()
            self._question = asyncio.ensure_future(self._put())
        return self._now() - self._asked_at

    async def _put(self) -> None:
        try:
            await self._ask()
        except Exception:
            return  # a core that died is noticed by every call of the engine
