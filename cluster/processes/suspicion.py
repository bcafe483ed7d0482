"""Calls that may kill the actor that answers them: one that was under way at a death is repeated alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.faults import FaultyGroup
from cluster.processes.supervision import ActorLost, SupervisedActor
from curriculum.errors import UserError, one_line

MAX_FAILURES = 2
"""Failures of a call, the last one while no other call was under way, after which it is given up."""


class CallFailed(Exception):
    """An actor died in a call, or raised an unforeseen error, again and again; the message says what it did."""


class SuspectedCalls:
    """The calls of one actor. As long as a call is suspected, they are made one at a time.

    Consumes: calls.  Waits for: the actor, its restarts included, and other calls while one is suspected.
    Unblocked by: replies.
    """

    def __init__(self, actor: SupervisedActor) -> None:
        """Take the actor."""
        self.actor = actor
        self._alone = asyncio.Lock()
        self._num_suspected = 0

    async def __call__(self, invoke: Callable[[Any], Awaitable[Any]]) -> Any:
        """Await `invoke(handle)`, an idempotent call; repeat it, alone, after a death or an unforeseen error.

        Raises:
            CallFailed: it failed when it was repeated, too.
            ActorLost: the actor is gone for good.
            UserError, FaultyGroup, ObjectLostError: raised by the call; they say what they are and are not repeated.
            RayActorError: another actor died that this one had called.
        """
        failure = await self._failure_or(invoke, reply := [])
        if failure is None:
            return reply[0]
        self._num_suspected += 1
        try:
            for _ in range(MAX_FAILURES - 1):
                failure = await self._failure_or(invoke, reply)
                if failure is None:
                    return reply[0]
        finally:
            self._num_suspected -= 1
        raise CallFailed(f"{self.actor.name} {failure}, {MAX_FAILURES} times, at last with nothing else to do")

    async def _failure_or(self, invoke: Callable[[Any], Awaitable[Any]], reply: list[Any]) -> str | None:
        """Append the reply; return how the actor failed instead, once it is back, or None."""
        async with self._alone if self._num_suspected else nullcontext():
            try:
                reply.append(await self.actor.call(invoke, attempts=1))
            except ObjectLostError:
                raise
            except ActorLost:
                if self.actor.lost:
                    raise
                return "died"
            except RayTaskError as error:
                if isinstance(error, UserError | FaultyGroup | RayActorError):
                    raise
                return f"raised {one_line(error)}"
        return None
