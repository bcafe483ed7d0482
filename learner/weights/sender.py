"""The sending side of a weight update: full weights from ZeRO-3 to memory that engines map, and to a group of engines.

Weights are gathered bucket by bucket, always in the same order, tied weights once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.weights.tensors import IN_FLIGHT, GroupMember, described, dtype_name, host_store
from actors.weights.update import (
    SAMPLED_STRIDE,
    Segment,
    TensorRecord,
    WeightGroup,
    WeightUpdate,
    bucket_slices,
    changes,
    segment_offsets,
)
from learner.weights.finite import check_finite, is_finite


class WeightSource:
    """The parameters of a module, gathered while they are iterated over.

    Waits for: the other ranks, in every bucket.  Unblocked by: all ranks iterating to the end.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take a module whose parameters ZeRO-3 has partitioned, or a plain one."""
        self._parameters = list(module.named_parameters())

    def records(self) -> tuple[TensorRecord, ...]:
        """Describe the tensors that iteration yields, without checksums; gather nothing."""
        return tuple(_record(name, weight) for name, weight in self._parameters)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter as (name, full tensor), on every rank; use it before the next one is requested."""
        for bucket in self.buckets():
            yield from bucket

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the parameters in the buckets of `bucket_slices`; each bucket is gathered at once."""
        import deepspeed

        for bucket in self._buckets():
            with deepspeed.zero.GatheredParameters([weight for _, weight in bucket]):
                yield [(name, weight.detach()) for name, weight in bucket]

    def without_values(self) -> dict[str, Tensor]:
        """Return tensors on the meta device with the shapes and types of those that iteration yields."""
        return {
            name: torch.empty(_shape(weight), dtype=weight.dtype, device="meta") for name, weight in self._parameters
        }

    def one_by_one(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters of these names as (name, full tensor), each gathered by itself, on every rank."""
        import deepspeed

        parameters = dict(self._parameters)
        for name in names:
            with deepspeed.zero.GatheredParameters([parameters[name]]):
                yield name, parameters[name].detach()

    def _buckets(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        for cut in bucket_slices(self.records()):
            yield self._parameters[cut]


class WeightSender:
    """One rank's part in every weight update; rank 0 writes the weights to memory.

    Two segments are used in turn: engines may still read version n while version n + 1 is written, and pages of a
    segment that is written again are already allocated. The caller must make sure that no engine reads version n - 1
    any more. With a group the weights are broadcast as well; the segment is then for engines that restart.
    """

    def __init__(self, source: WeightSource, *, is_root: bool, every_byte: bool) -> None:
        """Take the weights; `is_root` on rank 0; `every_byte` computes the checksums over whole tensors."""
        self._source = source
        self._is_root = is_root
        self._stride = 1 if every_byte else SAMPLED_STRIDE
        self._member: GroupMember | None = None
        self._written: list[tuple[WeightUpdate, Segment]] = []

    def open_group(
        self, version: int, *, host: str, num_receivers: int, epoch: int, timeout_s: float, device: torch.device
    ) -> WeightUpdate:
        """Send every version from this one on to a new group, which replaces the last one; called on rank 0.

        Args:
            version: the version that is published next.
            host: address of this host for the receivers.
            num_receivers: workers of all engines.
            epoch: number of the group.
            timeout_s: longest wait for a member.
            device: device of the gathered weights.

        Returns:
            the announcement of the version for the first engine; those of later versions and for other engines differ
            in `version` and `first_rank`.
        """
        if self._member is not None:
            self._member.close()
        store = host_store(host, timeout_s)
        group = WeightGroup(
            host=host,
            port=store.port,
            world_size=1 + num_receivers,
            epoch=epoch,
            timeout_s=timeout_s,
        )
        self._member = GroupMember(store, group, rank=0, device=device)
        return WeightUpdate(
            version=version, tensors=self._source.records(), source=group, first_rank=1, stride=self._stride
        )

    def publish(self, version: int) -> WeightUpdate | None:
        """Gather the weights; on rank 0, write them to memory and broadcast them if there is a group. Collective.

        Returns:
            on rank 0 an update with the path of the memory, None on the others.

        Raises:
            WeightGroupError: the group did not receive the weights.
            NonFiniteWeights: some are no finite numbers; raised when all ranks have gathered all of them.
        """
        if not self._is_root:
            for _ in self._source:
                pass
            return None
        segment = self._free_segment()
        records = self._write(segment, version)
        update = WeightUpdate(version=version, tensors=records, source=segment.path, stride=self._stride)
        self._written = [*self._written[-1:], (update, segment)]
        return update

    def with_values(self, version: int, *, delta: bool) -> WeightUpdate:
        """Return one of the last two versions with its values, for another host; called on rank 0.

        Args:
            version: one of the last two.
            delta: give the values as changes from the version before, if that is still there.

        Raises:
            ValueError: the version is not there any more.
        """
        versions = [update.version for update, _ in self._written]
        if version not in versions:
            raise ValueError(f"weights of version {version} were overwritten; the learner holds {versions}")
        index = versions.index(version)
        base = self._written[index - 1] if delta and index > 0 else None
        return carrying_values(*self._written[index], base=base)

    def _free_segment(self) -> Segment:
        if len(self._written) == 2:
            return self._written[0][1]
        return Segment(segment_offsets(self._source.records())[-1])

    def _write(self, segment: Segment, version: int) -> tuple[TensorRecord, ...]:
        """Copy every gathered tensor to where the engines read it; return the records, with checksums of the source."""
        offsets = segment_offsets(self._source.records())
        records: list[TensorRecord] = []
        non_finite: list[str] = []
        for (name, tensor), offset in zip(self._tensors(), offsets, strict=False):
            record = described(name, tensor, version=version, stride=self._stride)
            self._copy(tensor, segment.data[offset : offset + record.num_bytes])
            records.append(record)
            if not is_finite(tensor):
                non_finite.append(name)
        check_finite(non_finite, where=f"weight update {version}")
        return tuple(records)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._source) if self._member is None else broadcast(self._source, self._member)

    def _copy(self, tensor: Tensor, place: NDArray[np.uint8]) -> None:
        """Copy the bytes of a tensor; NumPy copies host memory with memcpy, at the speed of the memory."""
        data = tensor.reshape(-1).view(torch.uint8)
        if data.device.type == "cpu":
            np.copyto(place, data.numpy())
        else:
            torch.as_tensor(place).copy_(data)


def carrying_values(
    update: WeightUpdate, segment: Segment, *, base: tuple[WeightUpdate, Segment] | None
) -> WeightUpdate:
    """Return an update that carries the values in its segment.

    Args:
        update: the update.
        segment: memory that holds its values.
        base: an earlier version with tensors of the same sizes, and its memory; a tensor is then given as its changes
            from that version where these are smaller. None gives all tensors whole.
    """
    values = update.pieces(segment.data)
    if base is None:
        return replace(update, source=values)
    earlier, earlier_segment = base
    pieces = zip(update.tensors, values, earlier.pieces(earlier_segment.data), strict=True)
    return replace(
        update,
        source=tuple(changes(new, old, tensor.item_bytes) for tensor, new, old in pieces),
        base_version=earlier.version,
    )


def broadcast(source: WeightSource, member: GroupMember) -> Iterator[tuple[str, Tensor]]:
    """Send the tensors of a source to the group and yield each of them; all have arrived when the iteration has ended.

    While a bucket is sent, the next one is gathered.
    Consumes: the source, so the other ranks of the learner iterate over theirs.  Waits for: the members of the group,
    when two buckets are being sent.  Unblocked by: members that receive.

    Raises:
        WeightGroupError: a member died or makes no progress.
    """
    member.connect()
    under_way: deque[tuple[Tensor, Any]] = deque()
    for bucket in source.buckets():
        if len(under_way) == IN_FLIGHT:
            member.finish(under_way.popleft()[1])
        buffer = packed(bucket, member.device)
        under_way.append((buffer, member.start(buffer)))
        yield from bucket
    for _, work in under_way:
        member.finish(work)


def packed(bucket: Sequence[tuple[str, Tensor]], device: torch.device) -> Tensor:
    """Copy the tensors one after the other into [bytes] on the device, at the offsets of `segment_offsets`."""
    records = [_record(name, tensor) for name, tensor in bucket]
    offsets = segment_offsets(records)
    buffer = torch.empty(offsets[-1], dtype=torch.uint8, device=device)
    for (_, tensor), record, offset in zip(bucket, records, offsets, strict=False):
        buffer[offset : offset + record.num_bytes].copy_(tensor.reshape(-1).view(torch.uint8))
    return buffer


def _record(name: str, weight: Tensor) -> TensorRecord:
    """Describe a full tensor, or one that ZeRO-3 has partitioned, without its values."""
    shape = _shape(weight)
    num_bytes = torch.Size(shape).numel() * weight.dtype.itemsize
    return TensorRecord(name=name, dtype=dtype_name(weight.dtype), shape=shape, num_bytes=num_bytes)


def _shape(weight: Tensor) -> tuple[int, ...]:
    """Return the shape of a full tensor, also of one that ZeRO-3 has partitioned."""
    return tuple(getattr(weight, "ds_shape", weight.shape))
