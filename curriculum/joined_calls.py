"""One remote call instead of many: how the many callers of a process reach the coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class JoinedCalls(Generic[_Request, _Reply]):
    """Send requests that come in while a call is under way together in the next one. At a low rate each goes alone.

    Consumes: requests.  Waits for: the call under way.  Unblocked by: its replies.
    """

    def __init__(
        self,
        call: Callable[[Sequence[_Request]], Awaitable[Sequence[_Reply]]],
        *,
        unclaimed: Callable[[_Reply], None] | None = None,
    ) -> None:
        """Take the call, which replies to every request, in order, and who gets replies whose caller was cancelled."""
        self._call = call
        self._unclaimed = unclaimed
        self._waiting: list[tuple[_Request, asyncio.Future[_Reply]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, request: _Request) -> _Reply:
        """Return the reply to one request; raise what the call raised that it was sent with."""
        reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, reply))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await reply

    async def _send(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                await self._send_together([request for request, _ in together], [reply for _, reply in together])
        finally:
            self._sender = None

    async def _send_together(self, requests: list[_Request], replies: list[asyncio.Future[_Reply]]) -> None:
        try:
            results = await self._call(requests)
        except Exception as error:
            for reply in replies:
                if not reply.done():
                    reply.set_exception(error)
            return
        for reply, result in zip(replies, results, strict=True):
            if not reply.done():
                reply.set_result(result)
            elif self._unclaimed is not None:
                self._unclaimed(result)
