"""The receiving side of a weight update, inside vLLM's worker process: a backend of vLLM's weight-transfer API.

Every worker imports this module because `worker_extension_cls` names it, which registers the backend; no other process
imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.model_executor.model_loader import reload

from actors.weights.tensors import (
    GroupMember,
    check_all_loaded,
    join_store,
    mapped_tensors,
    received,
    recorded,
    repack_tied_head,
)
from actors.weights.update import SegmentReader, TensorRecord, WeightGroup, WeightGroupError, WeightUpdate

_reload: Any = reload  # vLLM declares neither these functions nor `register_engine` completely
_factory: Any = WeightTransferEngineFactory


class LearnerTransferEngine(WeightTransferEngine[Any, Any]):
    """Loader of the learner's weights, from a segment of this host or as they arrive in a group.

    Consumes: a segment, or broadcasts of the learner.  Waits for: nothing with a segment, which is complete before it
    is announced; in a group, the other members.  Unblocked by: the other members, or the timeout of the group.
    """

    def __init__(self, *arguments: Any) -> None:
        """Take the arguments that vLLM passes to every backend."""
        super().__init__(*arguments)
        self.records: list[TensorRecord] = []
        """Tensors that the latest update loaded into the model."""
        self._loaded: set[str] = set()
        self._expected: set[str] = set()
        self._reader = SegmentReader()
        self._member: GroupMember | None = None

    def parse_init_info(self, init_dict: dict[str, Any]) -> WeightUpdate:
        """Return the update that has these fields, in place of vLLM's own record."""
        return WeightUpdate.of(init_dict)

    def init_transfer_engine(self, init_info: WeightUpdate) -> None:
        """Join the group of an update before its first broadcast, while the engine still samples.

        Raises:
            WeightGroupError: other members did not join.
        """
        if isinstance(init_info.source, WeightGroup):
            self._member_of(init_info.source, init_info.first_rank).connect()

    def start_weight_update(self) -> None:
        """Convert the parameters back to the form of a checkpoint, layer by layer."""
        self.records, self._loaded = [], set()
        self._expected = {name for name, _ in self.model.named_parameters()}
        _reload.initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the tensors, and wait for the device to finish; the method of the base class raises on a CPU.

        Args:
            update_info: fields of a `WeightUpdate`.

        Raises:
            ValueError: the model has no parameter for a tensor.
            WeightGroupError: the tensors stopped arriving.
        """
        self.receive_weights(WeightUpdate.of(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: WeightUpdate) -> None:
        """Load every tensor into the model and record it; errors are those of `update_weights`."""
        tensors = self._tensors(update_info)
        passing = recorded(tensors, self.records, version=update_info.version, stride=update_info.stride)
        model: Any = self.model
        try:
            self._loaded |= model.load_weights(passing)
        except WeightGroupError:
            raise
        except (KeyError, ValueError, RuntimeError, AssertionError) as error:
            self.shutdown()  # so that the other members do not wait for this one
            name = self.records[-1].name if self.records else "(none)"
            raise ValueError(
                f"tensor {name} does not load into the engine: {type(error).__name__}: {error}; engine and learner "
                "must be of the same architecture"
            ) from error

    def finish_weight_update(self) -> None:
        """Convert the parameters to the form of the kernels.

        Raises:
            ValueError: a parameter of the model got no values from the update.
        """
        check_all_loaded(self._expected, self._loaded)
        _reload.finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        if self._member is not None:
            self._member.close()
            self._member = None

    def _tensors(self, update: WeightUpdate) -> Iterator[tuple[str, Tensor]]:
        source = update.source
        if isinstance(source, WeightGroup):
            return received(self._member_of(source, update.first_rank), update.tensors)
        if isinstance(source, str):
            return mapped_tensors(self._reader.map(source, update.segment_bytes), update.tensors)
        raise TypeError(f"weights of version {update.version} carry their values; write them to a HostCopy first")

    def _member_of(self, group: WeightGroup, first_rank: int) -> GroupMember:
        """Return this worker as a member of a group; leave an earlier group."""
        if self._member is None or self._member.group != group:
            self.shutdown()
            rank = first_rank + self.parallel_config.rank
            self._member = GroupMember(join_store(group), group, rank=rank, device=self.device)
        return self._member


class WeightReceiver:
    """Worker extension of vLLM (`worker_extension_cls`); `self` is the worker."""

    weight_transfer_engine: Any

    def weight_records(self) -> list[dict[str, Any]]:
        """Return the fields of the tensors that the latest update loaded into the model of this worker."""
        return [asdict(record) for record in self.weight_transfer_engine.records]


_factory.register_engine("learner", LearnerTransferEngine)
