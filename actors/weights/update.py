"""A weight update: the records that describe it, and the memory of a host that holds its values.

A segment is an anonymous file (`memfd_create`): it has no name in /dev/shm, is not bounded by the size of /dev/shm,
and disappears when the process that made it is killed. Other processes of the same user open it through /proc. Engines
on another host than the learner get whole tensors, or only the values that changed, bit for bit.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Every tensor of a segment starts at a multiple of it, in bytes."""
BUCKET_BYTES = 64 << 20
"""Most bytes of full weights that are gathered at once; a larger tensor is gathered alone."""
SAMPLED_STRIDE = 64
"""Blocks of a large tensor from one that enters the checksum to the next; the sampled blocks move with the version."""


class WeightVersionError(RuntimeError):
    """An update that does not follow the weights that the engine holds."""


def check_follows(held: int, sent: int) -> None:
    """Check that a version may follow the held one: any version after the start (0), later the next one only.

    Raises:
        WeightVersionError: it may not.
    """
    if sent < held or 0 < held < sent - 1:
        kind = "old" if sent < held else "new"
        raise WeightVersionError(
            f"weights of version {sent} are too {kind}: the engine holds version {held} and loads "
            f"{held + 1} next; resume from the last checkpoint"
        )


class WeightGroupError(RuntimeError):
    """A broadcast that did not reach all members of the group; it fails on all of them."""


class WeightLoadError(RuntimeError):
    """An update that the engine could not load completely; the engine samples no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """Description of a full tensor, made by the sender and by the engine that loads it."""

    name: str
    """Name in Hugging Face form; tied weights appear once."""
    dtype: str
    """Name of the type in torch, such as `bfloat16`."""
    shape: tuple[int, ...]
    num_bytes: int
    checksum: int | None = None
    """CRC-32 of the sampled blocks; None before the values are known."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild a record from its `asdict`, in which serialization has turned tuples into lists."""
        values: dict[str, Any] = {**fields, "shape": tuple(fields["shape"])}
        return cls(**values)

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return self.num_bytes // max(1, prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """A process group that carries weights from device to device; rank 0 is the learner's."""

    host: str
    """Address of learner rank 0."""
    port: int
    """Port of the store of rank 0."""
    world_size: int
    """Members: rank 0 of the learner, and the workers of all engines."""
    epoch: int
    """Number of the group, from 1; every new group has the next one."""
    timeout_s: float
    """Longest wait of a member for the others, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightUpdate:
    """New weights for an engine: a description of all tensors, and the source of their values."""

    version: int
    """Policy version of the weights."""
    tensors: tuple[TensorRecord, ...]
    """In the order in which they are in memory or are sent; without checksums if they are still to be gathered."""
    source: str | WeightGroup | tuple[NDArray[Any], ...]
    """Path of a segment on the host that reads it; a group in which the values are about to be broadcast; or, for
    another host, the values: of each tensor all its bytes, or its changes (see `changes`) where they are smaller."""
    base_version: int | None = None
    """Version from which changes are counted; None without changes."""
    first_rank: int = 0
    """Rank in the group of the first worker of the engine; its other workers follow. 0 without a group."""
    stride: int = SAMPLED_STRIDE
    """Blocks from one that enters the checksum to the next; 1 for all blocks."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild an update from its `asdict`, in which serialization has turned tuples into lists."""
        tensors = tuple(TensorRecord.of(tensor) for tensor in fields["tensors"])
        source = fields["source"] if isinstance(fields["source"], str) else WeightGroup(**fields["source"])
        values: dict[str, Any] = {**fields, "tensors": tensors, "source": source}
        return cls(**values)

    @property
    def offsets(self) -> tuple[int, ...]:
        """[tensors] first byte of each tensor in a segment."""
        return segment_offsets(self.tensors)[:-1]

    @property
    def segment_bytes(self) -> int:
        """Size of a segment that holds all tensors, padding included."""
        return segment_offsets(self.tensors)[-1]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def num_travelling_bytes(self) -> int:
        """Bytes of the values that the update carries to another host; 0 if its source is a segment or a group."""
        return sum(part.nbytes for part in self.source) if isinstance(self.source, tuple) else 0

    def pieces(self, data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        """Return [tensors] the bytes of each tensor in the memory of a segment, without a copy."""
        return tuple(
            data[offset : offset + tensor.num_bytes] for offset, tensor in zip(self.offsets, self.tensors, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """The tensors that an engine loaded; the run stops if they differ from those that the learner sent."""

    version: int
    tensors: tuple[TensorRecord, ...]
    pause_s: float
    """Seconds for which generation was paused."""
    num_travelling_bytes: int = 0
    """Bytes that came from another host for the update."""


def segment_offsets(tensors: Iterable[TensorRecord]) -> tuple[int, ...]:
    """Return [tensors + 1] the first byte of each tensor when they are stored one after the other, and the end."""
    sizes = (-(-tensor.num_bytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
    return tuple(accumulate(sizes, initial=0))


def bucket_slices(tensors: Sequence[TensorRecord]) -> Iterator[slice]:
    """Yield buckets of consecutive tensors with at most `BUCKET_BYTES`; a larger tensor has a bucket of its own."""
    start, filled = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and filled + tensor.num_bytes > BUCKET_BYTES:
            yield slice(start, index)
            start, filled = index, 0
        filled += tensor.num_bytes
    if tensors:
        yield slice(start, len(tensors))


# memory that processes of one host share by path -----------------------------------------------------------------


class Segment:
    """A block of memory of this process that others on this host may map."""

    def __init__(self, num_bytes: int) -> None:
        """Reserve `num_bytes`, at least one; the host allocates a page when it is first written."""
        self._handle = os.memfd_create("qwenlong-weights")
        os.ftruncate(self._handle, max(1, num_bytes))
        self._map = mmap.mmap(self._handle, max(1, num_bytes))

    def __del__(self) -> None:
        """Close the file; processes that have mapped it keep the memory."""
        os.close(self._handle)

    @property
    def path(self) -> str:
        """Path of the segment for processes of this host, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._handle}"

    @property
    def num_bytes(self) -> int:
        """Bytes of the segment."""
        return len(self._map)

    @property
    def data(self) -> NDArray[np.uint8]:
        """[num_bytes] the memory itself, writable."""
        return np.frombuffer(self._map, np.uint8)


class SegmentReader:
    """Reader that maps segments of other processes, read-only, and keeps the latest mappings.

    Segments are reused, and the pages of a mapping that is kept need not be mapped again.
    """

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def map(self, path: str, num_bytes: int) -> mmap.mmap:
        """Return the memory behind a path, [num_bytes or more].

        Raises:
            FileNotFoundError: its process is gone, or runs on another host.
            ValueError: it has fewer bytes.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < num_bytes:
                raise ValueError(
                    f"segment {path} has {status.st_size} bytes, fewer than the {num_bytes} that were announced"
                )
            if status.st_ino not in self._maps:  # a path may be reused for other memory, an inode is not
                self._maps = dict([*self._maps.items()][-1:])
                self._maps[status.st_ino] = mmap.mmap(
                    file.fileno(), status.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ
                )
            return self._maps[status.st_ino]


# values for another host -----------------------------------------------------------------------------------------


def changes(new: NDArray[np.uint8], old: NDArray[np.uint8], item_bytes: int) -> NDArray[Any]:
    """Return the values of a tensor that changed, or the whole tensor where that is smaller.

    Values are compared as unsigned integers of their size, so that -0.0 and NaN need no special care.

    Args:
        new: [bytes] of the tensor.
        old: [bytes] of the tensor in the earlier version.
        item_bytes: bytes of one value.

    Returns:
        [C] with fields `index` (in the flattened tensor) and `value`, or `new` itself.
    """
    word = np.dtype(f"u{item_bytes}")
    words = new.view(word)
    (indices,) = np.nonzero(words != old.view(word))
    change = np.dtype([("index", np.uint32), ("value", word)])
    if words.size > np.iinfo(np.uint32).max or indices.size * change.itemsize >= new.nbytes:
        return new
    found = np.empty(indices.size, change)
    found["index"], found["value"] = indices, words[indices]
    return found


class HostCopy:
    """Copy of the weights of an engine, on a host where the learner's segment cannot be mapped."""

    def __init__(self) -> None:
        self._segment = Segment(0)
        self._version: int | None = None

    def write(self, update: WeightUpdate) -> WeightUpdate:
        """Write the values that an update carries into the copy.

        Returns:
            the update with the path of the copy as its source; unchanged if its source is a segment or a group.

        Raises:
            WeightVersionError: the update has changes from a version that the copy does not hold.
        """
        if not isinstance(update.source, tuple):
            return update
        if self._version != update.version:
            self._check_base(update)
            if self._segment.num_bytes < update.segment_bytes:
                self._segment = Segment(update.segment_bytes)
            self._version = None  # until all tensors are written
            for piece, part in zip(update.pieces(self._segment.data), update.source, strict=True):
                _write(piece, part)
            self._version = update.version
        return replace(update, source=self._segment.path, base_version=None)

    def _check_base(self, update: WeightUpdate) -> None:
        if update.base_version is not None and update.base_version != self._version:
            raise WeightVersionError(
                f"weights of version {update.version} came as changes from version {update.base_version}, "
                f"but this host holds version {self._version}; send them whole"
            )


def _write(piece: NDArray[np.uint8], part: NDArray[Any]) -> None:
    """Write all bytes of a tensor, or its changes, to its memory."""
    if part.dtype.names is None:
        piece[:] = part
    else:
        values = part["value"]
        piece.view(values.dtype)[part["index"]] = values
