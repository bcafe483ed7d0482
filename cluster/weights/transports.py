"""Two ways to bring weights to all engines: memory that they read, or a broadcast that they receive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from actors.config import SyncConfig
from actors.weights.update import WeightGroupError, WeightReceipt, WeightUpdate
from cluster.weights.sync import (
    Engines,
    EngineSilent,
    Receipts,
    SendingLearner,
    WeightSyncError,
    check_receipt,
    in_time,
    receipt_of,
)
from curriculum.errors import root_cause

GROUP_SHARE = 0.5
"""Share of `rollout.sync.timeout_s` that members of the group wait for each other. Those that wait for a hanging engine
must report that before the driver gives up on the engine, so that it can name it."""


class HostMemory:
    """Rank 0 writes the weights into memory; engines on its host map it, engines on other hosts get a copy.

    Consumes: versions.  Waits for: engines that still read an older version, which the learner will overwrite; the
    ranks; then all engines, each at most `timeout_s`.  Unblocked by: their receipts.
    """

    def __init__(self, engines: Engines, learner: SendingLearner, config: SyncConfig) -> None:
        self._engines = engines
        self._learner = learner
        self._config = config
        self._learner_node: str | None = None
        self._nodes: dict[str, str] = {}
        self._travelling: dict[int, Any] = {}
        """Reference to the current version with its values, if engines on other hosts need it."""
        self._num_reading = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def transfer(self, version: int) -> tuple[WeightUpdate, asyncio.Task[Receipts]]:
        """Let the ranks write, then every engine read; see `Transport`."""
        if not self._nodes:
            self._nodes = await self._engines.on_every_engine(lambda _, handle: handle.node_id.remote())
        update = await self.publish(version)
        self._travelling = {}
        if any(node != self._learner_node for node in self._nodes.values()):
            self._travelling[version] = await self._learner.put_weights(version, delta=self._config.delta)
        loading = self._engines.on_every_engine(lambda name, handle: self._load(update, name, handle))
        return update, asyncio.create_task(loading)

    async def publish(self, version: int) -> WeightUpdate:
        """Let the ranks write when no engine reads; return where the weights are on the host of rank 0."""
        await self._is_idle.wait()
        if self._learner_node is None:
            self._learner_node = await self._learner.node_id()
        return await self._learner.publish_weights(version)

    async def restore(self, update: WeightUpdate, name: str, handle: Any) -> None:
        """Load what was sent last into an engine that has restarted, perhaps on another host; see `Transport`.

        On another host it waits for the call that the learner works on, which has no limit; its own `timeout_s` begins
        when the weights are on their way.
        """
        expected = "answer after its restart"
        self._nodes[name] = await in_time(name, expected, handle.node_id.remote(), timeout_s=self._config.timeout_s)
        await self._load(update, name, handle, is_fresh=True)

    async def _load(self, update: WeightUpdate, name: str, handle: Any, *, is_fresh: bool = False) -> WeightReceipt:
        self._num_reading += 1
        self._is_idle.clear()
        try:
            form = await self._form(update, name, is_fresh)
            reply = handle.load_weights.remote(form)
            receipt = await in_time(name, receipt_of(update.version), reply, timeout_s=self._config.timeout_s)
        finally:
            self._num_reading -= 1
            if self._num_reading == 0:
                self._is_idle.set()
        check_receipt(update, receipt, name)
        return receipt

    async def _form(self, update: WeightUpdate, name: str, is_fresh: bool) -> Any:
        """Return where the weights are on rank 0's host, or a reference to their values for another host.

        Only an engine that holds the version before gets the changes alone.
        """
        if self._nodes.get(name) == self._learner_node:
            return update
        if update.version not in self._travelling or (is_fresh and self._config.delta):
            return await self._learner.put_weights(update.version, delta=False, receiver=name)
        return self._travelling[update.version]


class Collective:
    """Every engine receives while rank 0 broadcasts what it gathers.

    A new group is formed when an engine has restarted or is gone; the restarted engine itself gets its weights through
    host memory, where rank 0 keeps what it sent.

    Consumes: versions.  Waits for: all engines, each at most `timeout_s`.  Unblocked by: their receipts.
    """

    def __init__(
        self, engines: Engines, learner: SendingLearner, config: SyncConfig, *, workers_per_engine: int
    ) -> None:
        """Take both sides; `workers_per_engine` is the number of group members in each engine."""
        self._engines = engines
        self._learner = learner
        self._config = config
        self._workers_per_engine = workers_per_engine
        self._memory = HostMemory(engines, learner, config)
        self._announcement: WeightUpdate | None = None
        """Announcement of the version with which the group was formed, for the first engine."""
        self._num_groups = 0
        self._members: dict[str, int] = {}
        """Process id of each engine's actor when the group was formed, in the order of their ranks."""

    async def transfer(self, version: int) -> tuple[WeightUpdate, asyncio.Task[Receipts]]:
        """Let the ranks broadcast while the engines receive; see `Transport`.

        Raises:
            WeightSyncError: an engine does not answer, or the broadcast failed; it names the engines that gave no
                receipt, then the others.
        """
        announcements = await self._announcements(version)
        receiving = asyncio.create_task(self._engines.on_every_engine(self._receiver(announcements)))
        try:
            update = await self._memory.publish(version)
        except WeightGroupError as error:
            raise broken(version, await receiving, root_cause(error)) from error
        except BaseException:
            receiving.cancel()
            raise
        receipts = asyncio.create_task(_receipts(update, receiving))
        receipts.add_done_callback(lambda _: receiving.cancel())  # if it is cancelled before it has started
        return update, receipts

    async def restore(self, update: WeightUpdate, name: str, handle: Any) -> None:
        """Load what was sent last into an engine that has restarted, from memory; see `Transport`."""
        await self._memory.restore(update, name, handle)

    async def _announcements(self, version: int) -> dict[str, WeightUpdate]:
        """Return the announcement for each engine, by name; form a new group if the live engines have changed."""
        members = await self._engines.on_every_engine(self._process_id)
        if self._announcement is None or members != self._members:
            self._announcement = await self._learner.open_weight_group(
                version,
                num_receivers=len(members) * self._workers_per_engine,
                epoch=self._num_groups + 1,
                timeout_s=GROUP_SHARE * self._config.timeout_s,
            )
            self._members = members
            self._num_groups += 1
        announcement = self._announcement
        return {
            name: replace(announcement, version=version, first_rank=1 + index * self._workers_per_engine)
            for index, name in enumerate(members)
        }

    async def _process_id(self, name: str, handle: Any) -> int:
        expected = "answer before a weight update"
        return await in_time(name, expected, handle.ready.remote(), timeout_s=self._config.timeout_s)

    def _receiver(
        self, announcements: Mapping[str, WeightUpdate]
    ) -> Callable[[str, Any], Awaitable[WeightReceipt | Exception]]:
        """Return a call for every engine; it returns the receipt or the error, so that all errors are raised as one."""

        async def receive(name: str, handle: Any) -> WeightReceipt | Exception:
            try:
                update = announcements[name]
                reply = handle.load_weights.remote(update)
                return await in_time(name, receipt_of(update.version), reply, timeout_s=self._config.timeout_s)
            except Exception as error:
                return error

        return receive


async def _receipts(sent: WeightUpdate, receiving: asyncio.Task[dict[str, Any]]) -> Receipts:
    outcomes = await receiving
    if any(isinstance(outcome, Exception) for outcome in outcomes.values()):
        raise broken(sent.version, outcomes, None)
    for name, receipt in outcomes.items():
        check_receipt(sent, receipt, name)
    return outcomes


def broken(version: int, outcomes: Mapping[str, Any], learner: BaseException | None) -> WeightSyncError:
    """Return the error of a broadcast that failed: first the engines that gave no answer, then the other ones.

    Engines that are silent or dead can be replaced; those that refuse cannot.

    Args:
        version: the version that was sent.
        outcomes: receipt or error of each engine.
        learner: error of rank 0, if it had one.
    """
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Exception)}
    silent = [name for name, error in errors.items() if not _has_answered(error)]
    ordered = [*silent, *(name for name in errors if name not in silent)]
    parts = [_describe(name, errors[name], version) for name in ordered]
    if learner is not None:
        parts.append(f"learner: {learner}")
    if silent:
        return EngineSilent("; ".join(parts))
    return WeightSyncError("; ".join(parts) + "; resume from the last checkpoint")


def _has_answered(error: Exception) -> bool:
    """Return whether the engine answered: a refusal or a failed broadcast is an answer, a timeout or a death is not."""
    return isinstance(error, WeightSyncError) and not isinstance(error.__cause__, TimeoutError)


def _describe(name: str, error: Exception, version: int) -> str:
    if isinstance(error, WeightSyncError):
        return str(error)
    return f"{name}: no {receipt_of(version)}, its actor is gone ({type(error).__name__})"
