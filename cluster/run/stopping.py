"""The end of a run before its time: asked for by a person, or forced by a weight update that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from curriculum.errors import UserError

_T = TypeVar("_T")


class Interrupted(UserError):
    """The run was asked to stop; everything up to the last finished step can be saved."""

    exit_status = 130

    def __str__(self) -> str:
        return "stopped; go on with --resume and the run folder"


class StopSignal:
    """Ends waits of the loop as soon as it makes no sense to wait any more.

    Consumes: nothing.  Waits for: the work it is given.  Unblocked by: the work, a stop, or a failure.
    """

    def __init__(self, stop: asyncio.Event, failure: Callable[[], Awaitable[None]]) -> None:
        """Take the event that asks the run to stop, and what raises the error of a weight update in flight."""
        self._stop = stop
        self._failure = failure

    def check(self) -> None:
        """Raise `Interrupted` if the run has been asked to stop."""
        if self._stop.is_set():
            raise Interrupted

    async def unless_stopped(self, work: Awaitable[_T]) -> _T:
        """Await `work`; cancel it as soon as the run is asked to stop or the weights in flight are lost.

        Raises:
            Interrupted: the run was asked to stop first.
            WeightSyncError: the weight update in flight failed first.
        """
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        failure = asyncio.ensure_future(self._failure())
        try:
            await asyncio.wait({task, stop, failure}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not task.done():
                raise Interrupted
            if failure.done():
                failure.result()
            return task.result()
        finally:
            for future in (task, stop, failure):
                if not future.done():
                    future.cancel()
