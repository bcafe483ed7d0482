"""The receiving side of a weight update, inside vLLM's worker process: a backend of vLLM's weight-transfer API.

Every worker imports this module because `worker_extension_cls` names it, and so knows the backend. Nobody else does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.loading import check_all_loaded, mapped_tensors, recorded, repack_tied_head
from actors.weights.member import GroupMember, join_store, received
from actors.weights.segment import SegmentReader
from actors.weights.update import TensorLayout, TensorRecord, WeightGroupError


@dataclass
class GroupInitInfo(WeightTransferInitInfo):
    """A group to join, instead of the one before; see `WeightGroup`."""

    host: str
    port: int
    world_size: int
    epoch: int
    timeout_s: float
    first_rank: int
    """Rank of the first worker of this engine."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The tensors of an update and where they come from; see `WeightUpdate` and `WeightBroadcast`."""

    version: int
    stride: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    path: str | None = None
    """Segment that they lie in; None: they come through the group."""
    num_bytes: int = 0
    """Of the segment."""

    @property
    def layouts(self) -> list[TensorLayout]:
        """In the order of the update."""
        fields = zip(self.names, self.dtypes, self.shapes, strict=True)
        return [TensorLayout(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in fields]


class LearnerTransferEngine(WeightTransferEngine[GroupInitInfo, UpdateInfo]):
    """Loads the learner's weights, from a segment of this host or as they arrive in the group.

    Consumes: a segment, or broadcasts of the learner.  Waits for: with a segment nothing, it is complete before it is
    announced; in a group the other members.  Unblocked by: them, or the timeout of the group.
    """

    init_info_cls = GroupInitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *arguments: Any) -> None:
        """Takes what vLLM gives to every backend."""
        super().__init__(*arguments)
        self.records: list[TensorRecord] = []
        """What the latest update handed to the model."""
        self._loaded: set[str] = set()
        self._expected: set[str] = set()
        self._reader = SegmentReader()
        self._member: GroupMember | None = None

    def init_transfer_engine(self, init_info: GroupInitInfo) -> None:
        """Joins a group and leaves the one before.

        Raises:
            WeightGroupError: the other members do not come.
        """
        self.shutdown()
        self._member = GroupMember(
            join_store(init_info.host, init_info.port, init_info.timeout_s),
            rank=init_info.first_rank + self.parallel_config.rank,
            world_size=init_info.world_size,
            epoch=init_info.epoch,
            timeout_s=init_info.timeout_s,
            device=self.device,
        )
        self._member.connect()

    def start_weight_update(self) -> None:
        """Parameters return to the form of a checkpoint, layer by layer."""
        self.records, self._loaded = [], set()
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads the tensors; waits for the device, which the base class would also ask of a CPU, where it raises."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Hands every tensor to the model and records it.

        Raises:
            ValueError: the model does not know a tensor.
            WeightGroupError: the tensors stop coming.
        """
        tensors = self._tensors(update_info)
        passing = recorded(tensors, self.records, version=update_info.version, stride=update_info.stride)
        model: Any = self.model
        try:
            self._loaded |= model.load_weights(passing)
        except WeightGroupError:
            raise
        except (KeyError, ValueError, RuntimeError, AssertionError) as error:
            self.shutdown()  # the others need not wait for this one
            name = self.records[-1].name if self.records else "(none)"
            raise ValueError(
                f"tensor {name} does not load into the engine: {type(error).__name__}: {error}; engine and learner "
                "must be of the same architecture"
            ) from error

    def finish_weight_update(self) -> None:
        """Parameters return to the form of the kernels.

        Raises:
            ValueError: no tensor of the update reached a parameter of the model.
        """
        check_all_loaded(self._expected, self._loaded)
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leaves the group."""
        if self._member is not None:
            self._member.close()
            self._member = None

    def _tensors(self, update_info: UpdateInfo) -> Iterator[tuple[str, Tensor]]:
        if update_info.path is not None:
            return mapped_tensors(self._reader.map(update_info.path, update_info.num_bytes), update_info.layouts)
        assert self._member is not None, "the engine joins before it receives"
        return received(self._member, update_info.layouts)


class WeightReceiver:
    """Worker extension of vLLM (`worker_extension_cls`); `self` is the worker."""

    weight_transfer_engine: Any

    def weight_records(self) -> list[dict[str, Any]]:
        """What the latest update handed to this worker's model."""
        return [asdict(record) for record in self.weight_transfer_engine.records]


WeightTransferEngineFactory.register_engine("learner", LearnerTransferEngine)
