"""The other way to deliver weights: engines receive what learner rank 0 broadcasts, while it is gathered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from actors.config import SyncConfig
from actors.weights.update import WeightBroadcast, WeightGroup, WeightGroupError, WeightReceipt
from cluster.weights.contract import WeightSyncError
from cluster.weights.delivery import Delivery, Engines, WeightDelivery, receipt_of
from curriculum.errors import root_cause
from learner.weights.published import PublishedWeights

GROUP_SHARE = 0.5
"""Of `rollout.sync.timeout_s`, what members of the group wait for each other: those that wait for an engine which
stands still must have said so before the driver gives up on that one."""

_T = TypeVar("_T")


class CollectiveDelivery(WeightDelivery):
    """Lets every engine receive while the learner sends, and believes none of them.

    The group is formed anew when an engine has restarted or is gone; the restarted engine itself gets its weights
    through host memory, where rank 0 keeps what it sent.
    Consumes: versions.  Waits for: all engines, each at most `timeout_s`.  Unblocked by: their receipts.
    """

    def __init__(
        self,
        engines: Engines,
        *,
        learner: Any,
        config: SyncConfig,
        probe_ids: Sequence[int],
        max_probe_gap: float,
        workers_per_engine: int,
    ) -> None:
        """As `WeightDelivery`; `workers_per_engine` is the number of group members in each engine."""
        super().__init__(engines, learner=learner, config=config, probe_ids=probe_ids, max_probe_gap=max_probe_gap)
        self._workers_per_engine = workers_per_engine
        self._group: WeightGroup | None = None
        self._members: dict[str, int] = {}
        """Process id of each engine's actor when the group was formed, in the order of their ranks."""
        self._receiving: asyncio.Task[dict[str, Any]] | None = None

    async def prepare(self) -> tuple[Sequence[int] | None, bool]:
        """As `WeightDelivery.prepare`; sees to it that the group consists of the engines that live now."""
        probe_ids, _ = await super().prepare()
        members = await self._engines.on_every_engine(
            lambda name, handle: self._in_time(name, "sign of life before a weight update", handle.ready.remote())
        )
        if members != self._members:
            self._members = members
            self._group = await self._learner.open_weight_group.remote(
                num_receivers=len(members) * self._workers_per_engine,
                epoch=1 if self._group is None else self._group.epoch + 1,
                timeout_s=GROUP_SHARE * self._config.timeout_s,
            )
        return probe_ids, False

    async def accompany(self, version: int, publishing: Awaitable[_T]) -> _T:
        """Lets the engines receive while the ranks publish; returns when the ranks are free.

        Raises:
            WeightSyncError: the broadcast broke; names the engine that gave no receipt, then the others.
        """
        self._receiving = asyncio.create_task(self._engines.on_every_engine(self._receiver(version)))
        try:
            return await publishing
        except WeightGroupError as error:
            raise broken(version, await self._receiving, root_cause(error)) from error
        except BaseException:
            self._receiving.cancel()
            raise

    async def deliver(self, weights: PublishedWeights) -> dict[str, Delivery]:
        """Waits for the receipts of what was broadcast, and checks them; results by actor name.

        Raises:
            WeightSyncError: naming an engine that loaded something else, computes something else, refused or was late.
            ActorLost: no engine is left.
        """
        assert self._receiving is not None, "accompany comes first"
        receipts = await self._receiving
        if any(isinstance(receipt, Exception) for receipt in receipts.values()):
            raise broken(weights.update.version, receipts, None)
        self._current = weights
        return await self._engines.on_every_engine(
            lambda name, handle: self._checked(weights, receipts[name], name, handle)
        )

    def _receiver(self, version: int) -> Callable[[str, Any], Awaitable[WeightReceipt | Exception]]:
        """A call for every engine; its result is the receipt, or what went wrong: all of it is told together."""

        async def receive(name: str, handle: Any) -> WeightReceipt | Exception:
            try:
                update = self._broadcast(version, name)
                return await self._in_time(name, receipt_of(version), handle.load_weights.remote(update))
            except Exception as error:
                return error

        return receive

    def _broadcast(self, version: int, name: str) -> WeightBroadcast:
        assert self._group is not None, "prepare comes first"
        first_rank = 1 + [*self._members].index(name) * self._workers_per_engine
        return WeightBroadcast(version=version, group=self._group, first_rank=first_rank)


def broken(version: int, outcomes: Mapping[str, Any], learner: BaseException | None) -> WeightSyncError:
    """Tells what every engine without a receipt said of a broadcast, those first that said nothing.

    Args:
        version: that was sent.
        outcomes: receipt or error of each engine.
        learner: error of rank 0, if it had one.
    """
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Exception)}
    silent = [name for name, error in errors.items() if not _has_answered(error)]
    told = [*silent, *(name for name in errors if name not in silent)]
    parts = [_told(name, errors[name], version) for name in told]
    if learner is not None:
        parts.append(f"learner: {learner}")
    return WeightSyncError("; ".join(parts) + "; resume from the last checkpoint")


def _has_answered(error: Exception) -> bool:
    """A refusal and a broadcast that broke are answers; a timeout or a death is none."""
    return isinstance(error, WeightSyncError) and not isinstance(error.__cause__, TimeoutError)


def _told(name: str, error: Exception, version: int) -> str:
    if isinstance(error, WeightSyncError):
        return str(error)
    return f"{name}: no {receipt_of(version)}, its actor is gone ({type(error).__name__})"
