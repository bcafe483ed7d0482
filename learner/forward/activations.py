"""Layer inputs that gradient checkpointing keeps, moved to host memory until the backward pass needs them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MIN_ELEMENTS = 1 << 16
"""Smaller tensors stay on the device: copying them costs more than they save."""


def offloaded_layer_inputs() -> AbstractContextManager[None]:
    """Return a context for a forward pass with re-entrant checkpointing.

    Only floating-point activations of one row, [1, T, width], are moved, which under checkpointing are the inputs of
    the layers; weights, which ZeRO-3 manages, and indices are not.
    """
    return saved_tensors_hooks(_to_host, _to_device)


def _to_host(x: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    wanted = x.ndim == 3 and x.shape[0] == 1 and x.is_floating_point() and x.numel() >= MIN_ELEMENTS
    if not wanted or x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    host.copy_(x, non_blocking=True)
    return x.device, host


def _to_device(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, host = packed
    return host.to(device, non_blocking=True)
