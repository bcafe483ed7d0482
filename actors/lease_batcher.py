"""Where the requests of one rollout actor get their leases: those that ask together share a call to the coordinator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from curriculum.task import TaskLease

LeaseUpTo = Callable[[int], Awaitable[Sequence[TaskLease]]]
"""At most so many leases of the coordinator; fewer while its quota is used up."""


class LeaseBatcher:
    """Leases for the callers of one process. At a low rate every caller has a call of its own.

    Consumes: leases of the coordinator.  Waits for: the call under way.  Unblocked by: its reply.
    """

    def __init__(self, lease_up_to: LeaseUpTo) -> None:
        self._lease_up_to = lease_up_to
        self._callers: deque[asyncio.Future[TaskLease | None]] = deque()
        self._spare: deque[TaskLease] = deque()
        """Leases whose caller was cancelled; this process holds them, so the next callers get them."""
        self._sender: asyncio.Task[None] | None = None

    async def next(self) -> TaskLease | None:
        """The next lease; None if the coordinator has none to give."""
        if self._spare:
            return self._spare.popleft()
        caller: asyncio.Future[TaskLease | None] = asyncio.get_running_loop().create_future()
        self._callers.append(caller)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await caller

    async def _send(self) -> None:
        try:
            while self._callers:
                callers, self._callers = self._callers, deque()
                await self._serve(callers)
        finally:
            self._sender = None

    async def _serve(self, callers: Sequence[asyncio.Future[TaskLease | None]]) -> None:
        try:
            leases = deque(await self._lease_up_to(len(callers)))
        except Exception as error:
            for caller in callers:
                if not caller.done():
                    caller.set_exception(error)
            return
        for caller in callers:
            if not caller.done():  # it may have been cancelled
                caller.set_result(leases.popleft() if leases else None)
        self._spare += leases
