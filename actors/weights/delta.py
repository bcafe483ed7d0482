"""Weights for engines on another host than the learner: whole, or only the values that changed, bit for bit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.weights.segment import Segment
from actors.weights.update import WeightUpdate, WeightVersionError

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Values are compared as integers of their size, so that -0.0 and NaN are values like any other."""
INDEX = np.uint32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """The values of a tensor that differ from those of the version before."""

    indices: NDArray[np.uint32]
    """[C] positions in the flattened tensor."""
    values: NDArray
    """[C] new values, as unsigned integers of the same size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightPayload:
    """An update that travels, once to each host."""

    update: WeightUpdate
    """Describes the full tensors; its path means nothing on another host."""
    base_version: int | None
    """Version that the changes are against; None if every tensor is whole."""
    tensors: tuple[NDArray[np.uint8] | Changes, ...]
    """In the order of the update; [bytes] of a whole tensor, or its changes where they are smaller."""

    @property
    def num_bytes(self) -> int:
        """What travels."""
        return sum(
            part.indices.nbytes + part.values.nbytes if isinstance(part, Changes) else part.nbytes
            for part in self.tensors
        )


def whole_payload(update: WeightUpdate, data: NDArray[np.uint8]) -> WeightPayload:
    """Every tensor of a segment."""
    return WeightPayload(update=update, base_version=None, tensors=_pieces(update, data))


def changed_payload(
    update: WeightUpdate, data: NDArray[np.uint8], base: WeightUpdate, base_data: NDArray[np.uint8]
) -> WeightPayload:
    """What changed between two segments of the same layout; a tensor that changed too much is whole."""
    pieces = zip(update.tensors, _pieces(update, data), _pieces(base, base_data), strict=True)
    return WeightPayload(
        update=update,
        base_version=base.version,
        tensors=tuple(_changes(new, old, tensor.item_size) for tensor, new, old in pieces),
    )


class HostCopy:
    """The weights that an engine holds, on a host where the learner's segment cannot be mapped."""

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._version: int | None = None

    def write(self, payload: WeightPayload) -> WeightUpdate:
        """Brings the copy to the version of the payload and returns the update with the path of the copy.

        Raises:
            WeightVersionError: the changes are against a version that is not here.
        """
        update = payload.update
        if self._version != update.version:
            segment = self._base(payload)
            self._version = None  # half written from here on
            for piece, part in zip(_pieces(update, segment.data), payload.tensors, strict=True):
                _write(piece, part)
            self._segment, self._version = segment, update.version
        assert self._segment is not None
        return dataclasses.replace(update, path=self._segment.path)

    def _base(self, payload: WeightPayload) -> Segment:
        if payload.base_version is not None and payload.base_version != self._version:
            raise WeightVersionError(
                f"weights of version {payload.update.version} came as changes against version {payload.base_version}, "
                f"but this host holds version {self._version}; send them whole"
            )
        if self._segment is None or self._segment.num_bytes < payload.update.segment_bytes:
            return Segment(payload.update.segment_bytes)
        return self._segment


def _pieces(update: WeightUpdate, data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    return tuple(
        data[offset : offset + tensor.num_bytes] for offset, tensor in zip(update.offsets, update.tensors, strict=True)
    )


def _changes(new: NDArray[np.uint8], old: NDArray[np.uint8], item_size: int) -> NDArray[np.uint8] | Changes:
    words = new.view(_WORDS[item_size])
    indices = np.flatnonzero(words != old.view(_WORDS[item_size]))
    fits = words.size <= np.iinfo(INDEX).max
    if not fits or indices.size * (np.dtype(INDEX).itemsize + item_size) >= new.nbytes:
        return new
    return Changes(indices=indices.astype(INDEX), values=words[indices])


def _write(piece: NDArray[np.uint8], part: NDArray[np.uint8] | Changes) -> None:
    if isinstance(part, Changes):
        piece.view(part.values.dtype)[part.indices] = part.values
    else:
        piece[:] = part
