"""Leases from the coordinator actor, with one call for all requests that come together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from curriculum.joined_calls import JoinedCalls
from curriculum.task import TaskLease


class CoordinatorLeases:
    """Implementation of `actors.worker.Leases` with the coordinator actor."""

    def __init__(self, coordinator: Any, holder: str) -> None:
        """Take the handle of the actor, and the name of the holder of the leases."""
        self._coordinator = coordinator
        self._holder = holder
        self._spare: deque[TaskLease] = deque()
        """Leases whose caller was cancelled; the next callers get them."""
        self._next: JoinedCalls[None, TaskLease | None] = JoinedCalls(self._lease_all, unclaimed=self._put_back)

    async def lease(self) -> TaskLease | None:
        """Return the next lease; None when the coordinator has none to give."""
        lease = None if self._spare else await self._next(None)
        if lease is None and self._spare:
            return self._spare.popleft()
        return lease

    async def requeue(self, lease_id: int) -> None:
        """Give a lease back unanswered."""
        await self._coordinator.requeue.remote(lease_id, self._holder)

    def _put_back(self, lease: TaskLease | None) -> None:
        if lease is not None:
            self._spare.append(lease)

    async def _lease_all(self, requests: Sequence[None]) -> Sequence[TaskLease | None]:
        leases = await self._coordinator.lease_up_to.remote(self._holder, len(requests))
        return [*leases, *[None] * (len(requests) - len(leases))]
