"""Layer inputs that gradient checkpointing keeps, moved to host memory until the backward pass asks for them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MIN_ELEMENTS = 1 << 16
"""Smaller tensors are not worth the way."""


def offloaded_layer_inputs() -> AbstractContextManager[None]:
    """Context for a forward pass with re-entrant checkpointing.

    Only floating activations of one row, [1, T, width], move: not the weights, which ZeRO-3 looks after, and not
    indices. Under checkpointing those are the inputs of the layers.
    """
    return saved_tensors_hooks(_to_host, _back)


def _to_host(x: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    wanted = x.ndim == 3 and x.shape[0] == 1 and x.is_floating_point() and x.numel() >= MIN_ELEMENTS
    if not wanted or x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    host.copy_(x, non_blocking=True)
    return x.device, host


def _back(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, host = packed
    return host.to(device, non_blocking=True)
