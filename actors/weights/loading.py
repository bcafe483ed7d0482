"""What happens to the tensors of an update on their way into a vLLM model; no vLLM in here."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

from actors.weights.update import TensorLayout, TensorRecord, segment_offsets

BLOCK_BYTES = 4096
"""Unit in which large tensors are sampled."""
WHOLE_BYTES = 64 << 10
"""Tensors up to this size are checksummed as a whole."""


def record_of(name: str, tensor: Tensor, *, version: int, stride: int) -> TensorRecord:
    """Describes a full tensor, with the CRC-32 of sampled blocks.

    Args:
        name: of the tensor.
        tensor: full, on any device.
        version: of the update; which blocks are sampled moves with it, so that `stride` updates cover every byte.
        stride: one of so many blocks is sampled, besides the first and the last; 1 takes the whole tensor.
    """
    data = tensor.detach().reshape(-1).view(torch.uint8)
    return TensorRecord(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        num_bytes=data.numel(),
        checksum=_checksum(data, version % stride, stride),
    )


def recorded(
    named_tensors: Iterable[tuple[str, Tensor]], records: list[TensorRecord], *, version: int, stride: int
) -> Iterator[tuple[str, Tensor]]:
    """Passes tensors on and writes down each one that goes by."""
    for name, tensor in named_tensors:
        records.append(record_of(name, tensor, version=version, stride=stride))
        yield name, tensor


def mapped_tensors(memory: mmap, layouts: Sequence[TensorLayout]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a mapped segment without a copy; whoever writes into one is stopped by the system."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        data = torch.frombuffer(memory, dtype=torch.uint8)
    return tensors_in(data, layouts)


def tensors_in(data: Tensor, layouts: Sequence[TensorLayout]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that lie one after the other in [bytes] `data`, as `segment_offsets` places them; no copy."""
    sizes = [layout_bytes(layout) for layout in layouts]
    for layout, size, offset in zip(layouts, sizes, segment_offsets(sizes), strict=False):
        piece = data[offset : offset + size].view(getattr(torch, layout.dtype))
        yield layout.name, piece.reshape(layout.shape)


def layout_bytes(layout: TensorLayout) -> int:
    """Of the full tensor."""
    return torch.Size(layout.shape).numel() * getattr(torch, layout.dtype).itemsize


def repack_tied_head(model: Any) -> None:
    """Packs a tied LM head again: on a CPU, vLLM keeps a packed copy that a reload of the embedding leaves stale."""
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight.device.type != "cpu":
        return
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)


def check_all_loaded(expected: set[str], loaded: set[str]) -> None:
    """Compares the parameters of the model with those that an update reached, both in vLLM's names.

    Raises:
        ValueError: naming a parameter that kept its old values.
    """
    missing = sorted(expected - loaded)
    if missing:
        raise ValueError(
            f"parameter {missing[0]} of the engine (and {len(missing) - 1} others) got no new values: the update names "
            "no tensor for it; engine and learner must be of the same architecture"
        )


def _checksum(data: Tensor, first: int, stride: int) -> int:
    if stride == 1 or data.numel() <= WHOLE_BYTES:
        return zlib.crc32(data.cpu().numpy().data)
    blocks = data[: data.numel() // BLOCK_BYTES * BLOCK_BYTES].view(-1, BLOCK_BYTES)
    sampled = torch.cat((blocks[0], blocks[first::stride].reshape(-1), data[-BLOCK_BYTES:]))
    return zlib.crc32(sampled.cpu().numpy().data)
