"""Groups in flight: each is a call in which a rollout actor samples its next lease and the group is scored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from actors.rollout import Sampling
from cluster.group import ScoredGroup
from cluster.roles import GroupLost, Rollouts

IDLE_S = 5.0
"""After so long without an arrival one more call is started: it takes over a lease whose holder lost it."""

Arrival = ScoredGroup | GroupLost | None
"""Result of a call: a scored group, the error that one was lost, or None because there was no lease to take."""


class GroupsInFlight:
    """Calls in flight; each takes whichever lease the coordinator hands out next.

    Consumes: leases, through the rollouts.  Waits for: the engines.  Unblocked by: every arrival.
    """

    def __init__(self, rollouts: Rollouts, arrive: Callable[[Arrival], Awaitable[None]]) -> None:
        """`arrive` is awaited with the result of every call, in the order of arrival."""
        self._rollouts = rollouts
        self._arrive = arrive
        self._calls: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[None] | None = None
        self._sampling: Sampling | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self, number: int, sampling: Sampling) -> None:
        """Start `number` calls."""
        self._sampling = sampling
        for _ in range(number):
            self._start_one(sampling)

    async def next_change(self) -> None:
        """Wait for an arrival, a `wake`, or `IDLE_S`.

        Raises:
            ActorLost: no rollout actor, or no judge actor, is left.
            Exception: whatever else made a call fail.
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
        """End the wait of `next_change`."""
        self._changed.set()

    async def close(self) -> None:
        """Abort the requests in the engines and cancel the calls; their leases stay open."""
        if self._calls:
            await self._rollouts.abort()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _start_one(self, sampling: Sampling) -> asyncio.Task[None]:
        call = asyncio.create_task(self._call(sampling))
        self._calls.add(call)
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
        self._calls.discard(call)
        if not call.cancelled() and call.exception() is not None:
            self._failure = self._failure or call.exception()
            self._changed.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
