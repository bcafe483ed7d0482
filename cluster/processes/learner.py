"""The ranks of the learner, as the loop reaches them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from cluster.group import ScoredGroup
from cluster.processes.supervision import ActorLost
from cluster.roles import SyncReport
from cluster.weights.delivery import WeightDelivery
from curriculum.task import Demonstration
from learner.reports import SftReport, StepReport
from learner.weights.published import PublishedWeights


class RayLearner:
    """All ranks of the learner, called together; their weights go to the rollout actors."""

    def __init__(self, ranks: Sequence[Any], delivery: WeightDelivery, *, reference: Path | None) -> None:
        """Takes the rank actors in order; `reference` is where the frozen reference policy is kept, if there is one."""
        self._ranks = ranks
        self._delivery = delivery
        self._reference = reference

    async def start_stage(self, stage: str) -> None:
        """A fresh optimizer; the reinforcement learning freezes its starting point when a KL penalty asks for it."""
        reference = self._reference if stage == "rl" else None
        if reference is not None and not reference.exists():
            await self.export(reference)
        await self._all("start_stage", stage, None if reference is None else str(reference))

    async def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport:
        """One update of the warm-up."""
        return (await self._all("sft_step", ray.put(list(demonstrations)), learning_rate))[0]

    async def accumulate(self, groups: Sequence[ScoredGroup], *, batch_groups: int) -> None:
        """Hand the next groups of a batch to the ranks; returns when they are forwarded and back-propagated."""
        await self._all("accumulate", [group.training_item() for group in groups], batch_groups)

    async def update(self, learning_rate: float) -> StepReport:
        """The optimizer updates of the batch that was accumulated."""
        return (await self._all("update", learning_rate))[0]

    async def publish_weights(self, version: int) -> PublishedWeights:
        """Gathers the weights to where engines can read them, or while they receive them; when it returns the ranks
        are free.

        Raises:
            WeightSyncError: an engine does not receive what is broadcast.
        """
        probe, elsewhere = await self._delivery.prepare()
        probe_ids = None if probe is None else np.array(probe, np.int32)
        publishing = self._all("publish_weights", version, probe_ids=probe_ids, elsewhere=elsewhere)
        weights, *_ = await self._delivery.accompany(version, publishing)
        self._delivery.published(weights)
        return weights

    async def deliver(self, weights: PublishedWeights) -> SyncReport:
        """Waits until every engine has loaded published weights and checks its receipt; the ranks have no part in it.

        Raises:
            WeightSyncError: an engine reports something else than was sent, or nothing in time.
        """
        start = time.monotonic()
        delivered = (await self._delivery.deliver(weights)).values()
        deliver_s = time.monotonic() - start
        gaps = [delivery.probe_gap for delivery in delivered if delivery.probe_gap is not None]
        return SyncReport(
            version=weights.update.version,
            num_tensors=len(weights.update.tensors),
            num_bytes=weights.update.num_bytes,
            num_engines=len(delivered),
            seconds=weights.gather_s + deliver_s,
            gather_s=weights.gather_s,
            deliver_s=deliver_s,
            pause_s=max(delivery.receipt.pause_s for delivery in delivered),
            probe_gap_max=max(gaps, default=None),
            num_travelling_bytes=weights.num_travelling_bytes,
        )

    async def sync_weights(self, version: int) -> SyncReport:
        """Publishes the weights and delivers them.

        Raises:
            WeightSyncError: an engine reports something else than was sent, or nothing in time.
        """
        return await self.deliver(await self.publish_weights(version))

    async def bring_up_to_date(self, name: str, handle: Any) -> None:
        """Sends the current weights to an engine that restarted with those of the base model."""
        await self._delivery.bring_up_to_date(name, handle)

    async def save(self, directory: Path) -> None:
        """Writes a checkpoint."""
        await self._all("save", directory)

    async def load(self, directory: Path) -> None:
        """Restores a checkpoint."""
        await self._all("load", directory)

    async def export(self, directory: Path) -> None:
        """Writes a Hugging Face folder."""
        await self._all("export", directory)

    async def _all(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        """Calls every rank; a rank that dies ends the run, since the others wait for it in a collective."""
        calls = [getattr(rank, method).remote(*arguments, **options) for rank in self._ranks]
        try:
            return await asyncio.gather(*calls)
        except RayActorError as error:
            raise ActorLost(
                f"a learner rank died in {method}; continue from the last checkpoint with --resume"
            ) from error
