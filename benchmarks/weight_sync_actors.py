"""Learner ranks and engines that can also do parts of a weight update alone, and do it in other ways."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from torch import Tensor

from actors.rollout_actor import RolloutActor
from actors.weights.tensors import repack_tied_head
from actors.weights.update import Segment, SegmentReader, TensorRecord, WeightUpdate
from curriculum.task import Task
from curriculum.task_table import TaskColumns
from learner.learner_actor import LearnerActor
from learner.weights.sender import WeightSender

PAGE_BYTES = 4096
IN_MEMORY = Path("/dev/shm")


class Nobody:
    """A coordinator that has one task and is asked for none."""

    def task_columns(self) -> tuple[Any, ...]:
        """As `CoordinatorActor.task_columns`."""
        task = Task(task_id="t", data_source="", question="", answers=("",), prompt_ids=np.ones(1, np.int32), phase=0)
        return (ray.put(TaskColumns.of([task])),)


class MeasuredSender(WeightSender):
    """A sender that knows how long it copies."""

    write_s = 0.0
    """Seconds of the last update that went into copying gathered tensors."""

    def publish(self, version: int) -> WeightUpdate | None:
        self.write_s = 0.0
        return super().publish(version)

    def _copy(self, tensor: Tensor, place: NDArray[np.uint8]) -> None:
        started = time.perf_counter()
        super()._copy(tensor, place)
        self.write_s += time.perf_counter() - started


class MeasuredLearner(LearnerActor):
    """A rank of the learner."""

    def start(self, **arguments: Any) -> int:
        """Joins the other ranks, as `LearnerActor.start`."""
        pid = super().start(**arguments)
        self._sender = MeasuredSender(self._engine.weights, is_root=self._rank == 0, every_byte=False)
        self._announced: WeightUpdate | None = None
        return pid

    def publish_weights(self, version: int) -> WeightUpdate | None:
        """As `LearnerActor.publish_weights`; remembers what it said."""
        self._announced = super().publish_weights(version)
        return self._announced

    def gather_alone(self) -> None:
        """Gathers everything and keeps nothing."""
        for _ in self._engine.weights:
            pass

    def write_seconds(self) -> float:
        """Of the last update, copying gathered tensors to where engines read them."""
        return self._sender.write_s

    def announced(self) -> WeightUpdate | None:
        """The last update, on rank 0."""
        return self._announced

    def memcpy_seconds(self, num_bytes: int) -> float:
        """One thread, between two arrays whose pages are there, on rank 0."""
        if self._rank:
            return 0.0
        source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
        started = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - started

    def save_plain(self, folder: Path) -> None:
        """The weights as a safetensors file, from rank 0."""
        from safetensors.torch import save_file

        weights = dict(self._engine.gather_weights())
        if self._rank == 0:
            save_file(weights, folder / "model.safetensors")

    def put_state_dict(self) -> list[Any]:
        """[reference] of a state dict in the object store, from rank 0."""
        weights = dict(self._engine.gather_weights())
        return [ray.put(weights)] if self._rank == 0 else []

    def send_parameters(self, engines: list[Any]) -> None:
        """One call per parameter and engine, from rank 0."""
        for name, weight in self._engine.weights:
            if self._rank == 0:
                ray.get([engine.load_parameter.remote(name, weight.numpy()) for engine in engines])


def _repack(worker: Any) -> None:
    repack_tied_head(worker.model_runner.get_model())


class MeasuredRollout(RolloutActor):
    """An engine."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._reader = SegmentReader()

    async def map_seconds(self, update: WeightUpdate) -> float:
        """Maps the weights as a worker does and touches every page."""
        started = time.perf_counter()
        memory = np.frombuffer(self._reader.map(update.source, update.segment_bytes), np.uint8)
        memory[::PAGE_BYTES].max()
        return time.perf_counter() - started

    async def reload_alone(self, folder: str) -> None:
        """vLLM's own way to load new weights, and the packing of the tied head without which they would be wrong."""
        await self._engine._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        await self._engine._engine.collective_rpc(_repack)

    async def load_state_dict(self, weights: dict[str, Any]) -> None:
        """Writes the state dict as a file in memory, which is how vLLM's engine process gets at it, and reloads it."""
        from safetensors.torch import save_file

        folder = IN_MEMORY / f"qwenlong-benchmark-{self._name}"
        folder.mkdir(exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        await self.reload_alone(str(folder))
        (folder / "model.safetensors").unlink()
        folder.rmdir()

    async def begin_parameters(self) -> None:
        """Parameters come one by one from here on."""
        await self._engine._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine._engine.start_weight_update()

    async def load_parameter(self, name: str, weight: NDArray) -> None:
        """One parameter."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        segment = Segment(weight.nbytes)
        segment.data[: weight.nbytes] = weight.reshape(-1).view(np.uint8)
        record = TensorRecord(name=name, dtype=str(weight.dtype), shape=weight.shape, num_bytes=weight.nbytes)
        update = WeightUpdate(version=0, tensors=(record,), source=segment.path)
        await self._engine._engine.update_weights(WeightTransferUpdateRequest(asdict(update)))

    async def end_parameters(self) -> None:
        """All parameters are there."""
        await self._engine._engine.finish_weight_update()
        await self._engine._engine.resume_generation()
