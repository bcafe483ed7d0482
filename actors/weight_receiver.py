"""The receiving side of a weight update, inside vLLM's worker process."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What arrived, as the receiver saw it; equals what the sender announced or the run stops."""

    version: int
    """Policy version that the weights make."""
    num_bytes: int
    """Of the payload, safetensors header included."""
    checksums: Mapping[str, int]
    """CRC-32 of every tensor, shape and dtype included, by name."""


def tensor_checksums(payload: bytes | memoryview) -> dict[str, int]:
    """CRC-32 of every tensor of a safetensors payload, by name; a tensor of another shape or dtype differs as well."""
    header_bytes = int.from_bytes(payload[:8], "little")
    header = json.loads(bytes(payload[8 : 8 + header_bytes]))
    data = memoryview(payload)[8 + header_bytes :]
    header.pop("__metadata__", None)
    return {name: _checksum(tensor, data) for name, tensor in header.items()}


def _checksum(tensor: dict[str, Any], data: memoryview) -> int:
    begin, end = tensor["data_offsets"]
    return zlib.crc32(data[begin:end], zlib.crc32(f"{tensor['dtype']} {tensor['shape']}".encode()))


class WeightReceiver:
    """Worker extension of vLLM (`worker_extension_cls`); `self` is the worker."""

    model_runner: Any

    def load_safetensors(self, path: str) -> dict[str, Any]:
        """Reloads every weight from a safetensors file in Hugging Face names.

        Returns:
            the receipt: bytes of the file and checksums of its tensors, as this worker read them.
        """
        from safetensors.torch import load

        with open(path, "rb") as file:
            payload = file.read()
        tensors = load(payload)
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        _repack_tied_head(self.model_runner.get_model())
        return {"num_bytes": len(payload), "checksums": tensor_checksums(payload)}


def _repack_tied_head(model: Any) -> None:
    """Packs a tied LM head again: on a CPU, vLLM keeps a packed copy that a reload of the embedding leaves stale."""
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight.device.type != "cpu":
        return
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)
