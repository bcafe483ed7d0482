"""The receiving side of a weight update, inside vLLM's worker process."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What arrived, as the receiver saw it; equals what the sender announced or the run stops."""

    version: int
    """Policy version that the weights make."""
    num_tensors: int
    num_bytes: int
    checksum: int
    """CRC-32 of the payload."""


class WeightReceiver:
    """Worker extension of vLLM (`worker_extension_cls`); `self` is the worker."""

    model_runner: Any

    def load_safetensors(self, path: str) -> dict[str, Any]:
        """Reloads every weight from a safetensors file in Hugging Face names.

        Returns:
            the receipt: number of tensors, bytes of the file, CRC-32 of the file as this worker read it.
        """
        from safetensors.torch import load

        with open(path, "rb") as file:
            payload = file.read()
        tensors = load(payload)
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        _repack_tied_head(self.model_runner.get_model())
        return {"num_tensors": len(tensors), "num_bytes": len(payload), "checksum": zlib.crc32(payload)}


def _repack_tied_head(model: Any) -> None:
    """Packs a tied LM head again: on a CPU, vLLM keeps a packed copy that a reload of the embedding leaves stale."""
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight.device.type != "cpu":
        return
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)
