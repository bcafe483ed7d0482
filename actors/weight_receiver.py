"""The receiving side of a weight update, inside vLLM's worker process: a backend of vLLM's weight-transfer API.

Every worker imports this module because `worker_extension_cls` names it, and so knows the backend. Nobody else does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.segment import SegmentReader
from actors.weight_loading import check_all_loaded, mapped_tensors, recorded, repack_tied_head
from actors.weight_update import TensorRecord


@dataclass
class SegmentInitInfo(WeightTransferInitInfo):
    """Nothing is set up: an update names the segment that it lies in."""


@dataclass
class SegmentUpdateInfo(WeightTransferUpdateInfo):
    """Where the tensors of an update lie; see `WeightUpdate`."""

    path: str
    num_bytes: int
    version: int
    stride: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class SegmentTransferEngine(WeightTransferEngine[SegmentInitInfo, SegmentUpdateInfo]):
    """Loads weights that another process of this host laid out in a segment.

    Consumes: a segment.  Waits for: nothing; the segment is complete before it is announced.
    """

    init_info_cls = SegmentInitInfo
    update_info_cls = SegmentUpdateInfo

    def __init__(self, *arguments: Any) -> None:
        """Takes what vLLM gives to every backend."""
        super().__init__(*arguments)
        self.records: list[TensorRecord] = []
        """What the latest update handed to the model."""
        self._loaded: set[str] = set()
        self._expected: set[str] = set()
        self._reader = SegmentReader()

    def init_transfer_engine(self, init_info: SegmentInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Parameters return to the form of a checkpoint, layer by layer."""
        self.records, self._loaded = [], set()
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads the segment; waits for the device, which the base class would also ask of a CPU, where it raises."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SegmentUpdateInfo) -> None:
        """Hands every tensor to the model and records it.

        Raises:
            ValueError: the model does not know a tensor.
        """
        memory = self._reader.map(update_info.path, update_info.num_bytes)
        tensors = mapped_tensors(memory, update_info.names, update_info.dtypes, update_info.shapes)
        passing = recorded(tensors, self.records, version=update_info.version, stride=update_info.stride)
        model: Any = self.model
        try:
            self._loaded |= model.load_weights(passing)
        except (KeyError, ValueError, RuntimeError, AssertionError) as error:
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
        """Nothing to let go of."""


class WeightReceiver:
    """Worker extension of vLLM (`worker_extension_cls`); `self` is the worker."""

    weight_transfer_engine: Any

    def weight_records(self) -> list[dict[str, Any]]:
        """What the latest update handed to this worker's model."""
        return [asdict(record) for record in self.weight_transfer_engine.records]


WeightTransferEngineFactory.register_engine("segment", SegmentTransferEngine)
