"""Groups under way: calls that let a rollout actor answer its next lease and have the group scored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from actors.rollout import Sampling
from cluster.group import ScoredGroup
from cluster.roles import GroupLost, Rollouts

IDLE_S = 5.0
"""After so long without an arrival one more call goes out: it takes over a lease whose holder lost it."""

Arrival = ScoredGroup | GroupLost | None
"""What a call brings: a scored group, the news that one was lost, or nothing, since there was no lease to take."""


class GroupsInFlight:
    """GroupsInFlight under way; each takes whichever lease the coordinator hands out next.

    Consumes: leases, through the rollouts.  Waits for: the engines.  Unblocked by: every landing.
    """

    def __init__(self, rollouts: Rollouts, arrive: Callable[[Arrival], Awaitable[None]]) -> None:
        """`arrive` hears what every call brings, in the order of arrival."""
        self._rollouts = rollouts
        self._arrive = arrive
        self._under_way: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[None] | None = None
        self._sampling: Sampling | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self, number: int, sampling: Sampling) -> None:
        """Sends `number` calls out."""
        self._sampling = sampling
        for _ in range(number):
            self._start_one(sampling)

    async def next_change(self) -> None:
        """Waits for a landing, a `wake`, or a while.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left; likewise whatever else made a call fail.
        """
        self._check()
        try:
            async with asyncio.timeout(IDLE_S):
                await self._changed.wait()
                self._changed.clear()
        except TimeoutError:
            if self._sampling is not None and (self._spare is None or self._spare.done()):
                self._spare = self._start_one(self._sampling)
        self._check()

    def wake(self) -> None:
        """Ends the wait of `next_change`."""
        self._changed.set()

    async def close(self) -> None:
        """Ends the requests in the engines and the calls that wait for them; their leases stay open."""
        if self._under_way:
            await self._rollouts.abort()
        for call in self._under_way:
            call.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _start_one(self, sampling: Sampling) -> asyncio.Task[None]:
        call = asyncio.create_task(self._call(sampling))
        self._under_way.add(call)
        call.add_done_callback(self._done)
        return call

    async def _call(self, sampling: Sampling) -> None:
        try:
            arrival: Arrival = await self._rollouts.next_group(sampling)
        except GroupLost as lost:
            arrival = lost
        await self._arrive(arrival)
        self._changed.set()

    def _done(self, call: asyncio.Task[None]) -> None:
        self._under_way.discard(call)
        if not call.cancelled() and call.exception() is not None:
            self._failure = self._failure or call.exception()
            self._changed.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
