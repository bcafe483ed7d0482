"""Records of a weight update: what the learner announces, and the receipt that an engine gives for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

ALIGNMENT = 64
"""Every tensor of a segment starts at a multiple of it, in bytes."""
BUCKET_BYTES = 64 << 20
"""Full weights that are gathered at once; a larger tensor is gathered alone."""
SAMPLED_STRIDE = 64
"""One of so many blocks of a large tensor is checksummed in an ordinary update; which one moves with the version."""


class WeightVersionError(RuntimeError):
    """An update that does not follow the weights that the engine holds."""


class WeightGroupError(RuntimeError):
    """A broadcast that did not reach all members of the group; those that wait for it give up as well."""


class WeightLoadError(RuntimeError):
    """An update that the engine could not load; it holds half of it and samples no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A full tensor, as whoever sent or loaded it saw it."""

    name: str
    """In Hugging Face form; tied weights appear once."""
    dtype: str
    """As torch calls it, `bfloat16`."""
    shape: tuple[int, ...]
    num_bytes: int
    checksum: int
    """CRC-32 of the sampled blocks."""

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return self.num_bytes // max(1, prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """New weights, ready to be mapped by the engines of one host."""

    version: int
    """Policy version that the weights make."""
    path: str
    """Of the segment, on the host where the update is read."""
    tensors: tuple[TensorRecord, ...]
    """In the order of the segment."""
    stride: int = SAMPLED_STRIDE
    """One of so many blocks is in the checksums; 1: all of them."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """[tensors] first byte of each tensor in the segment."""
        return segment_offsets(tensor.num_bytes for tensor in self.tensors)[:-1]

    @property
    def segment_bytes(self) -> int:
        """Size of the segment, padding included."""
        return segment_offsets(tensor.num_bytes for tensor in self.tensors)[-1]

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """A full tensor before its values are known."""

    name: str
    """In Hugging Face form; tied weights appear once."""
    dtype: str
    """As torch calls it, `bfloat16`."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """What the members of a process group for weights agree on; rank 0 is the learner's."""

    host: str
    """Address of learner rank 0."""
    port: int
    """Where its store listens."""
    world_size: int
    """One, and the workers of all engines."""
    epoch: int
    """Groups before this one, plus one."""
    timeout_s: float
    """Longest wait of a member for the others."""
    stride: int
    """One of so many blocks is in the checksums; 1: all of them."""
    tensors: tuple[TensorLayout, ...]
    """In the order in which they are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBroadcast:
    """New weights that are about to be sent to a group; the checksums follow when all of them were."""

    version: int
    """Policy version that the weights make."""
    group: WeightGroup
    first_rank: int
    """Rank in the group of the first worker of the engine that gets this; its other workers follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What an engine handed to its model, in the order of the segment; equals what was announced or the run stops."""

    version: int
    tensors: tuple[TensorRecord, ...]
    pause_s: float
    """Generation stood still."""
    apply_s: float
    """Of the pause, reading and loading the tensors."""


def segment_offsets(sizes: Iterable[int]) -> tuple[int, ...]:
    """[tensors + 1] where tensors of these sizes (bytes) start when laid out one after the other, and the end."""
    return tuple(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))


def bucket_slices(sizes: Sequence[int]) -> Iterator[slice]:
    """Cuts tensors of these sizes (bytes) into runs of at most `BUCKET_BYTES`; a larger tensor is a run of its own."""
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > BUCKET_BYTES:
            yield slice(start, index)
            start, filled = index, 0
        filled += size
    if sizes:
        yield slice(start, len(sizes))
