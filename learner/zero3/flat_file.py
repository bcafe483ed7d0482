"""Flat fp32 tensors in a safetensors file that is written as a stream and read by ranges, on a disk or in a storage.

The library writes and maps files on a disk only. The format: 8 bytes with the length of the header, the header (JSON:
type, shape, and first and last byte of every tensor behind the header), the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from curriculum.digest import Block
from curriculum.shared_folder import SharedFolder

_LENGTH_BYTES, _ELEMENT_BYTES, _ALIGNMENT = 8, 4, 8
_BLOCK_ELEMENTS = 1 << 22


def flat_file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the file of these tensors."""
    return len(_head(tensors)) + sum(tensor.numel() for tensor in tensors.values()) * _ELEMENT_BYTES


def flat_file_blocks(tensors: Mapping[str, Tensor]) -> Iterator[Block]:
    """Yield the file of flat fp32 tensors: the head, then the tensors in blocks of 16 MiB, one in host memory."""
    yield _head(tensors)
    for tensor in tensors.values():
        for start in range(0, tensor.numel(), _BLOCK_ELEMENTS):
            piece: Any = tensor.detach()[start : start + _BLOCK_ELEMENTS].cpu().contiguous().numpy()
            yield memoryview(piece).cast("B")


class FlatFile:
    """A file of flat fp32 tensors, of which pieces are read; it is opened with the first of them."""

    def __init__(self, folder: SharedFolder, name: str) -> None:
        self._folder = folder
        self._name = name

    def read(self, key: str, first: int, last: int) -> Tensor:
        """Return the elements of a tensor from `first` to before `last`.

        Raises:
            UserError: the file is not there, or cannot be read.
            ValueError: it does not hold them.
        """
        begin, end = self._spans[key]
        start, stop = begin + first * _ELEMENT_BYTES, begin + last * _ELEMENT_BYTES
        data = self._folder.read(self._name, start, stop) if start < stop <= end else b""
        if len(data) != (last - first) * _ELEMENT_BYTES:
            raise ValueError(f"{self._name} has fewer than {last} elements of {key}")
        return torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.empty(0)

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """First byte of every tensor in the file, and the one behind its last."""
        length = int.from_bytes(self._folder.read(self._name, 0, _LENGTH_BYTES), "little")
        behind = _LENGTH_BYTES + length
        header: dict[str, Any] = json.loads(self._folder.read(self._name, _LENGTH_BYTES, behind))
        spans: dict[str, tuple[int, int]] = {}
        for key, entry in header.items():
            if entry["dtype"] != "F32":
                raise ValueError(f"{self._name} holds {key} as {entry['dtype']}, not as F32")
            first, last = entry["data_offsets"]
            spans[key] = (behind + int(first), behind + int(last))
        return spans


def _head(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {}
    position = 0
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 1:
            raise ValueError(f"{key} is no flat fp32 tensor: {tensor.dtype}, {list(tensor.shape)}")
        end = position + tensor.numel() * _ELEMENT_BYTES
        entries[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header
