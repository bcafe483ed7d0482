"""Ray shell around one ZeRO-3 rank; all ranks are called together, with the same arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_hook

from actors.config import YarnConfig
from actors.weights.tensors import host_store
from actors.weights.update import WeightUpdate
from curriculum.digest import FileDigest
from curriculum.files import PRIVATE
from curriculum.heartbeat import Heartbeat, Lifeline, Pulse, reported
from curriculum.shared_folder import SharedFolder
from curriculum.task import Demonstration
from learner.batch.microbatch import TrainingGroup, TrainingItem
from learner.batch.packing import groups_of, plan_slice
from learner.config import LearnerConfig
from learner.engine import LearnerEngine, Stage
from learner.forward.running_batch import MiniBatchPart, mini_batch_parts
from learner.gpu_share import GpuShare
from learner.out_of_memory import tells_out_of_memory
from learner.reports import SftReport, StepReport
from learner.rounding import TextScores
from learner.weights.sender import WeightSender
from learner.zero3.checkpoint import discard_part
from learner.zero3.shared_model import model_nearby, publish_model

RENDEZVOUS_S = 600.0
"""Longest wait, in seconds, of a call to the store where the ranks meet."""

_ray: Any = ray  # where its declarations have no complete types


class LearnerActor:
    """Rank `rank` of the learner.

    Consumes: batches of the driver.  Waits for: the other ranks, in every collective.  Unblocked by: their calls.
    """

    def __init__(self, *, rank: int, num_ranks: int, lifeline: Lifeline | None = None) -> None:
        self._pulse = Pulse(lifeline)
        self._rank = rank
        self._num_ranks = num_ranks

    def __repr__(self) -> str:
        return f"learner-{getattr(self, '_rank', '?')}"

    def heartbeat(self) -> Heartbeat:
        """Say what this rank does; called in a thread of its own, so that it answers at any time."""
        return self._pulse.beat(self.node_id())

    def rendezvous(self) -> tuple[str, int]:
        """Open the store where the ranks connect; return its address and port; called on rank 0."""
        host = _ray.util.get_node_ip_address()
        self._store = host_store(host, RENDEZVOUS_S)
        return host, self._store.port

    @reported
    @tells_out_of_memory
    def start(
        self,
        *,
        master: tuple[str, int],
        config: LearnerConfig,
        model_path: str,
        seed: int,
        on_gpu: bool,
        trust_remote_code: bool,
        yarn: YarnConfig | None = None,
        delta: bool,
        secrets: Mapping[str, str],
        gpu_share: GpuShare | None = None,
    ) -> int:
        """Join the other ranks and load the model; return the process id.

        `gpu_share` is given where an engine lives on the same GPU.
        """
        os.umask(PRIVATE)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("learner").setLevel(logging.INFO)
        os.environ.update(secrets)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = master[0], str(master[1])
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # torch joins the store of `rendezvous`, on rank 0 too
        register_module_forward_hook(self._progress)
        self._config, self._gpu_share = config, gpu_share
        if gpu_share is not None:
            gpu_share.limit()
        self._engine = LearnerEngine(
            config,
            model_path,
            rank=self._rank,
            world_size=self._num_ranks,
            seed=seed,
            on_gpu=on_gpu,
            trust_remote_code=trust_remote_code,
            yarn=yarn,
        )
        self._sender = WeightSender(self._engine.weights, is_root=self._rank == 0, every_byte=delta)
        return os.getpid()

    @reported
    @tells_out_of_memory
    def start_stage(self, stage: str, reference: SharedFolder | None) -> None:
        """Begin the warm-up (`sft`) or the reinforcement learning (`rl`) with a fresh optimizer."""
        if reference is None or not self._engine.loads_reference(Stage(stage)):
            self._engine.start_stage(Stage(stage))
            return
        with model_nearby(reference, node=self.node_id(), rank=self._rank) as path:
            self._engine.start_stage(Stage(stage), reference_path=path)

    @reported
    @tells_out_of_memory
    def sft_step(self, demonstrations: Sequence[Demonstration], learning_rate: float) -> SftReport:
        """Make one update of the warm-up."""
        return self._engine.sft_step(demonstrations, learning_rate=learning_rate)

    @reported
    @tells_out_of_memory
    def accumulate(self, items: Sequence[TrainingItem], batch_groups: int) -> None:
        """Add the next groups to the running batch; fetch those of this rank and no others.

        Args:
            items: consecutive groups of the batch.
            batch_groups: groups of the whole batch.
        """
        start = self._engine.num_accumulated
        parts = mini_batch_parts(
            start, len(items), batch_groups=batch_groups, num_mini_batches=self._config.mini_batches
        )
        for part in parts:
            self._accumulate_part(items[part.groups.start - start : part.groups.stop - start], part)

    @reported
    @tells_out_of_memory
    def update(self, learning_rate: float) -> StepReport:
        """Make the optimizer updates of the running batch."""
        return self._engine.update(learning_rate=learning_rate)

    def preview(self) -> StepReport:
        """Return what is known of the running batch before its first update."""
        return self._engine.preview()

    def drop(self) -> None:
        """Forget the running batch; no update is made."""
        self._engine.drop()

    @reported
    def rest(self) -> None:
        """Give back what this rank does not hold between two steps.

        Raises:
            RunFailed: it holds more of a shared GPU than the recipe leaves it.
        """
        self._engine.rest()
        if self._gpu_share is not None:
            self._gpu_share.check_at_rest(self._engine.device)

    def node_id(self) -> str:
        """Return Ray's id of the host."""
        return ray.get_runtime_context().get_node_id()

    @reported
    def open_weight_group(self, version: int, *, num_receivers: int, epoch: int, timeout_s: float) -> WeightUpdate:
        """Broadcast every version from this one on to a new group; called on rank 0, see `WeightSender.open_group`."""
        return self._sender.open_group(
            version,
            host=_ray.util.get_node_ip_address(),
            num_receivers=num_receivers,
            epoch=epoch,
            timeout_s=timeout_s,
            device=self._engine.device,
        )

    @reported
    def publish_weights(self, version: int) -> WeightUpdate | None:
        """Gather the weights into memory that engines map, and broadcast them to the group if there is one.

        Returns:
            on rank 0 what was sent and where it is in memory, None on the others.

        Raises:
            WeightGroupError: the group did not receive the weights.
        """
        return self._sender.publish(version)

    @reported
    def put_weights(self, version: int, *, delta: bool) -> Any:
        """Put a published version into the object store, for engines on other hosts; called on rank 0.

        Args:
            version: one of the last two.
            delta: as changes against the version before, if there is one, for engines that hold it.

        Returns:
            `ray.ObjectRef` of a `WeightUpdate` that carries its values.
        """
        return _ray.put(self._sender.with_values(version, delta=delta))

    @reported
    def score(self, token_ids: NDArray[np.int32]) -> TextScores:
        """Score each of the T tokens but the first, at temperature 1."""
        return self._engine.score(token_ids)

    def _progress(self, *_: Any) -> None:
        """Note that a layer was computed, in any pass."""
        self._pulse.progress()

    def _accumulate_part(self, items: Sequence[TrainingItem], part: MiniBatchPart) -> None:
        plan = plan_slice(
            items,
            num_ranks=self._config.num_data_ranks,
            max_tokens=self._config.max_tokens_per_microbatch,
        )
        mine = groups_of(plan, self._rank // self._config.sequence_parallel)
        groups = ray.get([items[i].group for i in mine])
        own = {i: TrainingGroup.of(group, items[i].advantages) for i, group in zip(mine, groups, strict=True)}
        self._engine.accumulate(plan, own, part)

    @reported
    def save(self, place: SharedFolder) -> dict[str, FileDigest]:
        """Write this rank's part of a checkpoint; return what it wrote."""
        return self._engine.save(place)

    @reported
    def load(self, place: SharedFolder) -> None:
        """Restore a checkpoint."""
        self._engine.load(place)

    @reported
    def export(self, place: SharedFolder) -> dict[str, FileDigest]:
        """Write a Hugging Face folder, on rank 0; return what it wrote."""
        return publish_model(place, self._engine.export, rank=self._rank)

    def discard(self, place: SharedFolder) -> None:
        """Remove what this rank has written of a checkpoint that is none."""
        discard_part(place, self._rank)

    def discard_model(self, place: SharedFolder) -> None:
        """Remove a model that is not whole."""
        place.remove()
