"""The sending side of a weight update: all parameters as one safetensors payload with a receipt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from actors.weight_receiver import tensor_checksums


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAnnouncement:
    """What is sent; every engine must report the same or the run stops."""

    version: int
    """Policy version that the weights make."""
    num_bytes: int
    """Of the payload, safetensors header included."""
    checksums: Mapping[str, int]
    """CRC-32 of every tensor, shape and dtype included, by name."""


def pack_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
) -> tuple[WeightAnnouncement, NDArray[np.uint8]]:
    """Packs full parameters in Hugging Face names, tied ones once.

    Returns:
        the announcement and the payload, [num_bytes] uint8.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in named_tensors}
    payload = np.frombuffer(save(tensors), dtype=np.uint8)
    announcement = WeightAnnouncement(
        version=version, num_bytes=payload.nbytes, checksums=tensor_checksums(payload.data)
    )
    return announcement, payload
