"""The sending side of a weight update: full weights in memory that engines map, and on their way to a group of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.weights.delta import WeightPayload, changed_payload, whole_payload
from actors.weights.loading import record_of
from actors.weights.member import GroupMember, host_store
from actors.weights.segment import Segment
from actors.weights.update import SAMPLED_STRIDE, TensorRecord, WeightGroup, WeightUpdate, segment_offsets
from learner.weights.broadcast import broadcast
from learner.weights.source import WeightSource


class WeightSender:
    """One rank's part in every update; rank 0 lays the weights out.

    Two segments take turns: engines may still read version n while version n + 1 is written, and the memory of a
    segment is ready when it is written again. Whoever calls makes sure that nobody reads version n - 1 any more.
    With a group the weights are broadcast as well; the segment is then for engines that restart.
    """

    def __init__(self, source: WeightSource, *, is_root: bool, every_byte: bool) -> None:
        """Take the weights; `is_root` on rank 0, `every_byte` puts whole tensors into the checksums."""
        self._source = source
        self._is_root = is_root
        self._stride = 1 if every_byte else SAMPLED_STRIDE
        self._member: GroupMember | None = None
        self._written: list[tuple[WeightUpdate, Segment]] = []
        self.write_s = 0.0
        """Seconds of the last update that went into copying gathered tensors."""

    def open_group(
        self, *, host: str, num_receivers: int, epoch: int, timeout_s: float, device: torch.device
    ) -> WeightGroup:
        """From now on rank 0 sends every version to this group, instead of the one before; see `WeightGroup`.

        Args:
            host: address of this host for the receivers.
            num_receivers: workers of all engines.
            epoch: number of the group.
            timeout_s: longest wait for a member.
            device: of the gathered weights.
        """
        if self._member is not None:
            self._member.close()
        store = host_store(host, timeout_s)
        world_size = 1 + num_receivers
        self._member = GroupMember(
            store, rank=0, world_size=world_size, epoch=epoch, timeout_s=timeout_s, device=device
        )
        return WeightGroup(
            host=host,
            port=store.port,
            world_size=world_size,
            epoch=epoch,
            timeout_s=timeout_s,
            stride=self._stride,
            tensors=tuple(meta.layout for meta in self._source.metadata()),
        )

    def publish(self, version: int) -> WeightUpdate | None:
        """Gather the weights; collective. Rank 0 writes them and returns the announcement, the others return None.

        Raises:
            WeightGroupError: the group did not take them.
        """
        if not self._is_root:
            for _ in self._source:
                pass
            return None
        segment = self._free_segment()
        records = self._write(segment, version)
        update = WeightUpdate(version=version, path=segment.path, tensors=tuple(records), stride=self._stride)
        self._written = [*self._written[-1:], (update, segment)]
        return update

    @property
    def latest(self) -> WeightUpdate:
        """The version that was published last, on rank 0."""
        return self._written[-1][0]

    def payload(self, version: int, *, delta: bool) -> WeightPayload:
        """One of the last two versions for another host; with `delta` as changes against the one before, if there is.

        Raises:
            ValueError: the version is not there any more.
        """
        versions = [update.version for update, _ in self._written]
        if version not in versions:
            raise ValueError(f"weights of version {version} are gone; the learner holds {versions}")
        index = versions.index(version)
        update, segment = self._written[index]
        if not delta or index == 0:
            return whole_payload(update, segment.data)
        base, base_segment = self._written[index - 1]
        return changed_payload(update, segment.data, base, base_segment.data)

    def _free_segment(self) -> Segment:
        if len(self._written) == 2:
            return self._written[0][1]
        return Segment(segment_offsets(meta.num_bytes for meta in self._source.metadata())[-1])

    def _write(self, segment: Segment, version: int) -> list[TensorRecord]:
        """One copy: from the gathered tensor to where the engines read it. The checksum is that of the source."""
        self.write_s = 0.0
        offsets = segment_offsets(meta.num_bytes for meta in self._source.metadata())
        records = []
        for (name, tensor), offset in zip(self._tensors(), offsets, strict=False):
            record = record_of(name, tensor, version=version, stride=self._stride)
            started = time.perf_counter()
            _copy(tensor, segment.data[offset : offset + record.num_bytes])
            self.write_s += time.perf_counter() - started
            records.append(record)
        return records

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._source) if self._member is None else broadcast(self._source, self._member)


def _copy(tensor: Tensor, place: NDArray[np.uint8]) -> None:
    """NumPy copies host memory with memcpy, which is also what the transport is measured against."""
    data = tensor.reshape(-1).view(torch.uint8)
    if data.device.type == "cpu":
        np.copyto(place, data.numpy())
    else:
        torch.from_numpy(place).copy_(data)
