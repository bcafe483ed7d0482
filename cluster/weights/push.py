"""New weights on their way from the learner to the engines, while the learner goes on where it may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.roles import Learner, SyncReport
from learner.weights.published import PublishedWeights


class WeightPush:
    """At most one update under way; engines hold it, or the one before it.

    Consumes: versions.  Waits for: the update before, then the learner's ranks while they gather; without overlap for
    the engines as well.  Unblocked by: the receipts of the engines.
    """

    def __init__(self, learner: Learner, *, overlaps: bool, delivered: Callable[[SyncReport], Awaitable[None]]) -> None:
        """`delivered` hears of every update that is in all engines."""
        self._learner = learner
        self._overlaps = overlaps
        self._delivered = delivered
        self._delivery: asyncio.Task[None] | None = None
        self.last: SyncReport | None = None
        """The latest update that is in all engines."""

    async def send(self, version: int) -> None:
        """Sends the learner's weights; returns when its ranks are free again, without overlap when they have arrived.

        Raises:
            WeightSyncError: an engine holds something else than was sent, now or in the update before.
        """
        await self.settle()
        weights = await self._learner.publish_weights(version)
        self._delivery = asyncio.create_task(self._deliver(weights))
        if not self._overlaps:
            await self.settle()

    async def settle(self) -> None:
        """Waits until the engines hold what was sent; raises what went wrong on the way."""
        if self._delivery is not None:
            await self._delivery
            self._delivery = None

    @property
    def under_way(self) -> set[asyncio.Task[None]]:
        """The update that engines are taking, if there is one."""
        return set() if self._delivery is None else {self._delivery}

    def settled(self) -> set[asyncio.Task[None]]:
        """The update under way if it has arrived; raises what went wrong on the way."""
        done = {delivery for delivery in self.under_way if delivery.done()}
        for delivery in done:
            delivery.result()
        return done

    async def close(self) -> None:
        """Gives up the update under way."""
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.gather(self._delivery, return_exceptions=True)

    async def _deliver(self, weights: PublishedWeights) -> None:
        self.last = await self._learner.deliver(weights)
        await self._delivered(self.last)
