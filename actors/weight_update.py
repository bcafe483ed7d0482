"""Records of a weight update: what the learner announces, and the receipt that an engine gives for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import prod

ALIGNMENT = 64
"""Every tensor of a segment starts at a multiple of it, in bytes."""
SAMPLED_STRIDE = 64
"""One of so many blocks of a large tensor is checksummed in an ordinary update; which one moves with the version."""


class WeightVersionError(RuntimeError):
    """An update that does not follow the weights that the engine holds."""


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
