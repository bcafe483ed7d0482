"""One call instead of many: answers that come in while the coordinator is being told of others are told together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Answered = tuple[int, str]
"""(lease id, task id) of an answered lease."""
Keep = Callable[[Sequence[Answered]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    answered: tuple[Answered, ...]
    kept: asyncio.Future[tuple[int, ...]]

    @property
    def lease_ids(self) -> set[int]:
        return {lease_id for lease_id, _ in self.answered}


class KeepBatcher:
    """`keep` of the coordinator for many callers. At a low rate every caller has a call of its own.

    Consumes: answered leases.  Waits for: the call under way.  Unblocked by: its reply.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._requests: list[_Request] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, answered: Sequence[Answered]) -> tuple[int, ...]:
        """The leases among `answered` that are kept; the rest are duplicates."""
        request = _Request(answered=tuple(answered), kept=asyncio.get_running_loop().create_future())
        self._requests.append(request)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await request.kept

    async def _send(self) -> None:
        try:
            while self._requests:
                await self._send_together(self._next_requests())
        finally:
            self._sender = None

    def _next_requests(self) -> list[_Request]:
        """All but those that answer a lease for a second time: the reply could not tell them from the first."""
        together, later = [], []
        lease_ids: set[int] = set()
        for request in self._requests:
            (later if request.lease_ids & lease_ids else together).append(request)
            lease_ids |= request.lease_ids
        self._requests = later
        return together

    async def _send_together(self, requests: Sequence[_Request]) -> None:
        try:
            kept = set(await self._keep([pair for request in requests for pair in request.answered]))
        except Exception as error:
            for request in requests:
                if not request.kept.done():
                    request.kept.set_exception(error)
            return
        for request in requests:
            if not request.kept.done():  # its caller may have been cancelled
                request.kept.set_result(tuple(lease_id for lease_id, _ in request.answered if lease_id in kept))
