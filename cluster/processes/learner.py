"""The learner as the loop calls it: all of its ranks at once, through Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.weights.update import WeightUpdate
from cluster.group import ScoredGroup
from cluster.processes.turns import Side, Turns
from cluster.run.recovery import LearnerLost
from cluster.run.reference import Reference
from cluster.run.waits import Waits
from curriculum.digest import FileDigest
from curriculum.errors import RunFailed, UserError
from curriculum.shared_folder import SharedFolder
from curriculum.task import Demonstration
from learner.reports import SftReport, StepReport
from learner.rounding import TextScores

DEATH_CHECKS, DEATH_CHECK_S = 5, 1.0
"""How often, and how far apart, ranks are asked whether they are alive, after one of them got an error."""
HEARTBEAT = "heartbeat"
"""Concurrency group of the actors that answer heartbeats in a thread of their own."""


class RayLearner:
    """All ranks of the learner, called together."""

    def __init__(
        self,
        ranks: Sequence[Any],
        *,
        reference: Reference | None,
        waits: Waits | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Take the ranks.

        Args:
            ranks: the actors, in order.
            reference: where the frozen reference policy is kept, if there is one.
            waits: is told what the ranks are called for.
            turns: with the engines, on shared GPUs; None where the ranks have GPUs of their own.
        """
        self._turns = turns
        self._waits = waits or Waits()
        self._ranks = ranks
        self._reference = reference
        self._under_way: list[str] = []
        """Methods that the ranks were called for and have not finished, in the order in which they work on them."""

    async def start_stage(self, stage: str) -> None:
        """Start with a fresh optimizer; for a KL penalty, first write the weights as the reference policy."""
        reference = self._reference if stage == "rl" else None
        if reference is not None and not reference.is_whole:
            await self._write(reference)
        await self._all_at_work("start_stage", stage, None if reference is None else reference.place)

    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport:
        """Train on one batch of the warm-up; return its report."""
        return (await self._all_at_work("sft_step", ray.put(list(demonstrations)), learning_rate))[0]

    async def accumulate(self, groups: Sequence[ScoredGroup], *, batch_groups: int) -> None:
        """Hand the next groups of a batch to the ranks; return when their gradients are accumulated."""
        await self._all_at_work("accumulate", [group.training_item() for group in groups], batch_groups)

    async def update(self, learning_rate: float) -> StepReport:
        """Make the optimizer updates of the batch that was accumulated; return its report."""
        return (await self._all_at_work("update", learning_rate))[0]

    async def preview(self) -> StepReport:
        """Return what is known of the accumulated groups before the first update."""
        return (await self._all("preview"))[0]

    async def drop(self) -> None:
        """Forget the groups that were accumulated; no update is made."""
        await self._all_at_work("drop")

    async def rest(self) -> None:
        """Let every rank give back what it does not hold between two steps; `Turns` calls it."""
        await self._all("rest")

    async def node_id(self) -> str:
        """Return Ray's id of the node of rank 0."""
        return await self._first("node_id")

    async def publish_weights(self, version: int) -> WeightUpdate:
        """Gather the weights where engines on rank 0's host can read them, and broadcast them if a group is open.

        When it returns, the ranks are free.

        Raises:
            WeightGroupError: the group did not take them.
        """
        return (await self._all("publish_weights", version))[0]

    async def put_weights(self, version: int, *, delta: bool, receiver: str = "the engines") -> Any:
        """Return a reference to an update that carries its values, or what changed against the version before.

        A call that the ranks work on is finished first, however long that takes: an update of long rows takes many
        minutes. That `receiver` waits for it is said meanwhile; a rank that hangs in it is the watch's to end.
        """
        busy = [
            self._waits.on(f"{method} of the learner, then its weights for {receiver}")
            for method in self._under_way[:1]
        ]
        with busy[0] if busy else nullcontext():
            return await self._first("put_weights", version, delta=delta)

    async def open_weight_group(
        self, version: int, *, num_receivers: int, epoch: int, timeout_s: float
    ) -> WeightUpdate:
        """Broadcast every version from this one on to a new group; return the announcement for the first engine."""
        return await self._first(
            "open_weight_group", version, num_receivers=num_receivers, epoch=epoch, timeout_s=timeout_s
        )

    async def score(self, token_ids: Sequence[int]) -> TextScores:
        """Score the T tokens after the first."""
        return (await self._all("score", np.array(token_ids, np.int32)))[0]

    async def save(self, place: SharedFolder) -> dict[str, FileDigest]:
        """Write a checkpoint; return size and digest of every file, as the ranks that wrote them have told."""
        parts = await self._all("save", place)
        return {name: digest for part in parts for name, digest in part.items()}

    async def discard(self, place: SharedFolder) -> None:
        """Remove what the ranks have written of a checkpoint that is none, each its own."""
        await self._all("discard", place)

    async def load(self, place: SharedFolder) -> None:
        """Load a checkpoint."""
        await self._all_at_work("load", place)

    async def _write(self, reference: Reference) -> None:
        """Write the weights as the reference policy; what cannot be seen whole here is left nowhere."""
        place = await asyncio.to_thread(reference.begin)
        try:
            written = (await self._all("export", place))[0]
            await asyncio.to_thread(reference.finish, written)
        except RunFailed:
            raise  # a rank may still be writing; it is discarded when the actors are gone
        except UserError:
            await self._first("discard_model", place)
            with suppress(UserError):
                await asyncio.to_thread(reference.discard)
            raise

    async def _all_at_work(self, method: str, *arguments: Any) -> list[Any]:
        """Call all ranks for work that takes more of their GPUs than they hold between two steps."""
        if self._turns is None:
            return await self._all(method, *arguments)
        async with self._turns.of(Side.LEARNER):
            return await self._all(method, *arguments)

    async def _all(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        return await self._call(self._ranks, method, *arguments, **options)

    async def _first(self, method: str, *arguments: Any, **options: Any) -> Any:
        return (await self._call(self._ranks[:1], method, *arguments, **options))[0]

    async def _call(self, ranks: Sequence[Any], method: str, *arguments: Any, **options: Any) -> list[Any]:
        """Call these ranks.

        Raises:
            LearnerLost: one is gone; the others wait for it in a collective, or got an error from it.
        """
        calls = [getattr(rank, method).remote(*arguments, **options) for rank in ranks]
        self._under_way.append(method)
        try:
            with self._waits.on(f"{method} of the learner", is_bounded=True, is_quiet=True):
                return await asyncio.gather(*calls)
        except UserError:
            raise
        except (RayActorError, RayTaskError) as error:
            gone = await self._gone()
            if not gone and isinstance(error, RayTaskError):
                raise
            raise LearnerLost(f"{', '.join(gone) or 'a learner rank'} died in {method}") from error
        finally:
            self._under_way.remove(method)

    async def _gone(self) -> list[str]:
        """Return the names of the ranks that are dead; that is known a little later than what it does to others."""
        for _ in range(DEATH_CHECKS):
            dead = await asyncio.gather(*[_is_dead(rank) for rank in self._ranks])
            if any(dead):
                return [f"learner-{rank}" for rank, is_dead in enumerate(dead) if is_dead]
            await asyncio.sleep(DEATH_CHECK_S)
        return []


async def _is_dead(rank: Any) -> bool:
    try:
        async with asyncio.timeout(DEATH_CHECK_S):
            await rank.heartbeat.options(concurrency_group=HEARTBEAT).remote()
    except RayActorError:
        return True
    except TimeoutError:
        return False
    return False
