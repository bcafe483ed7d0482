"""From published weights to engines that hold them: who gets which form, who is still reading, what came back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from actors.config import SyncConfig
from actors.weights.update import WeightLoadError, WeightReceipt, WeightVersionError
from cluster.weights.contract import WeightSyncError, check_probe, check_receipt
from curriculum.errors import root_cause
from learner.weights.published import PublishedWeights

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One engine has the weights."""

    receipt: WeightReceipt
    probe_gap: float | None
    """Mean difference (nats) to the learner over the probe; None where it was not asked."""


class Engines(Protocol):
    """The rollout actors, as a delivery sees them."""

    async def on_every_engine(self, call: Callable[[str, Any], Awaitable[Any]]) -> dict[str, Any]:
        """Runs `call(name, handle)` on all living engines at once, again on those that restart meanwhile."""
        ...


class WeightDelivery:
    """Sends every version to every engine and believes none of them.

    Consumes: published weights.  Waits for: all engines, each at most `timeout_s`.  Unblocked by: their receipts.
    """

    def __init__(
        self,
        engines: Engines,
        *,
        learner: Any,
        config: SyncConfig,
        probe_ids: Sequence[int],
        max_probe_gap: float,
    ) -> None:
        """Takes the engines and learner rank 0.

        Args:
            engines: who gets the weights.
            learner: Ray handle of rank 0, which answers `node_id` and `whole_weights`.
            config: timeout, and how often to probe.
            probe_ids: [T] tokens that both sides score.
            max_probe_gap: mean difference (nats) between them that is accepted.
        """
        self._engines = engines
        self._learner = learner
        self._config = config
        self._probe_ids = tuple(probe_ids)
        self._max_probe_gap = max_probe_gap
        self._learner_node: str | None = None
        self._nodes: dict[str, str] = {}
        self._published: PublishedWeights | None = None
        self._current: PublishedWeights | None = None
        self._loading: Counter[int] = Counter()
        self._loaded = asyncio.Condition()
        self._num_published = 0

    async def prepare(self) -> tuple[Sequence[int] | None, bool]:
        """To be awaited before weights are published: the learner is about to write over an older version.

        Returns:
            the probe's tokens if this update is probed, and whether engines on other hosts need a copy.

        Raises:
            RuntimeError: the version published last has not been delivered.
        """
        if self._published is not self._current:
            raise RuntimeError("the weights published last have not been delivered; deliver them before the next ones")
        async with self._loaded:
            await self._loaded.wait_for(lambda: not any(self._loading.values()))
        if self._learner_node is None:
            self._learner_node = await self._learner.node_id.remote()
            self._nodes = await self._engines.on_every_engine(lambda _, handle: handle.node_id.remote())
        is_probed = self._num_published % self._config.probe_every == 0
        elsewhere = any(node != self._learner_node for node in self._nodes.values())
        return (self._probe_ids if is_probed else None), elsewhere

    async def accompany(self, version: int, publishing: Awaitable[_T]) -> _T:
        """What the engines do while the ranks publish this version: nothing, they read it later."""
        return await publishing

    def published(self, weights: PublishedWeights) -> None:
        """Remembers what is to be delivered next."""
        self._published = weights
        self._num_published += 1

    async def deliver(self, weights: PublishedWeights) -> dict[str, Delivery]:
        """Lets every engine load the weights, and checks what they say; results by actor name.

        Raises:
            WeightSyncError: naming an engine that loaded something else, computes something else, refused or was late.
            ActorLost: no engine is left.
        """
        self._current = weights
        return await self._engines.on_every_engine(lambda name, handle: self._load(weights, name, handle))

    async def bring_up_to_date(self, name: str, handle: Any) -> None:
        """Sends the current weights to an engine that restarted with those of the base model; checked likewise."""
        if self._current is not None:
            self._nodes[name] = await handle.node_id.remote()
            await self._load(self._current, name, handle, is_fresh=True)

    async def _load(self, weights: PublishedWeights, name: str, handle: Any, *, is_fresh: bool = False) -> Delivery:
        version = weights.update.version
        self._loading[version] += 1
        try:
            form = await self._form(weights, name, is_fresh)
            receipt = await self._in_time(name, receipt_of(version), handle.load_weights.remote(form))
        finally:
            async with self._loaded:
                self._loading[version] -= 1
                self._loaded.notify_all()
        return await self._checked(weights, receipt, name, handle)

    async def _checked(self, weights: PublishedWeights, receipt: WeightReceipt, name: str, handle: Any) -> Delivery:
        """What the engine says it has loaded against what was sent, and what it computes where that is due."""
        version = weights.update.version
        check_receipt(weights.update, receipt, name)
        if weights.probe_logprobs is None:
            return Delivery(receipt=receipt, probe_gap=None)
        scored = await self._in_time(name, receipt_of(version), handle.score.remote(self._probe_ids))
        gap = check_probe(weights.probe_logprobs, scored, engine=name, version=version, max_gap=self._max_probe_gap)
        return Delivery(receipt=receipt, probe_gap=gap)

    async def _form(self, weights: PublishedWeights, name: str, is_fresh: bool) -> Any:
        """Where the weights lie on this host, or what travels to another: changes only to engines with a base."""
        if self._nodes.get(name) == self._learner_node:
            return weights.update
        if weights.payload is None or (is_fresh and self._config.delta):
            return self._learner.whole_weights.remote(weights.update.version)
        return weights.payload

    async def _in_time(self, name: str, expected: str, reply: Awaitable[Any]) -> Any:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await reply
        except TimeoutError as error:
            raise WeightSyncError(
                f"{name}: no {expected} after {time.monotonic() - started:.0f} s "
                f"(rollout.sync.timeout_s={self._config.timeout_s:g}); raise it or read the actor's log under logs/"
            ) from error
        except (WeightVersionError, WeightLoadError) as error:
            raise WeightSyncError(f"{name}: {root_cause(error)}") from error


def receipt_of(version: int) -> str:
    """What is waited for, for people."""
    return f"receipt for weight update {version}"
