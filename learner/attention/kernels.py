"""Which flash attention runs: FlashAttention-2 inside torch, FlashAttention-3, or the kernel of torch for CPUs.

FlashAttention-3 is built from the folder `hopper` of the sources of flash-attn, as the top-level module
`flash_attn_interface`. Once it is active, torch sends to it the calls of `learner.attention.flash` and those of its own
attention. What it takes of them was read in torch 2.13 (`torch/nn/attention/_fa3.py`).
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
import torch.nn.attention

from curriculum.errors import UserError
from learner.collectives import together
from learner.config import AttentionKernel

logger = logging.getLogger(__name__)

FA3_MODULE = "flash_attn_interface"
HOPPER = 9
"""Major compute capability of the only cards with a FlashAttention-3."""
FA2, FA3 = "FlashAttention-2 of torch", f"FlashAttention-3 of {FA3_MODULE}"
ON_CPU = "the CPU flash kernel of torch"
NO_FLASH = "torch's own choice: CUDA has no flash kernel for fp32"

_attention: Any = torch.nn.attention  # torch declares its registry without types


def use_kernel(wanted: AttentionKernel, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the kernel, the same on all ranks, and log it; return what was logged. Collective.

    Args:
        wanted: the recipe's choice; `auto` takes FlashAttention-3 where every rank has it.
        device: of this rank.
        dtype: of weights and activations.

    Raises:
        UserError: the recipe wants FlashAttention-3 and some rank cannot have it; the same on every rank.
    """
    kernel = _kernel(wanted, device, dtype)
    logger.info("attention: %s", kernel)
    return kernel


def obstacle_to_fa3(device: torch.device) -> str | None:
    """Activate FlashAttention-3 in this process; return why it cannot be, or None where it is active."""
    major, minor = torch.cuda.get_device_capability(device)
    if major != HOPPER:
        return f"FlashAttention-3 runs on Hopper, compute capability {HOPPER}.0, and this card has {major}.{minor}"
    if importlib.util.find_spec(FA3_MODULE) is None:
        return f"the module {FA3_MODULE} is not installed"
    try:
        _attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch, or without a backward pass
        return f"the module {FA3_MODULE} cannot be used: {' '.join(str(error).split())}"
    return None


def _kernel(wanted: AttentionKernel, device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return ON_CPU
    if dtype == torch.float32:
        return NO_FLASH
    if wanted == "fa2":
        return FA2
    obstacles = [obstacle for obstacle in together(lambda: _activate(wanted, device)) if obstacle]
    if not obstacles:
        return FA3
    if _attention.current_flash_attention_impl():
        _attention.restore_flash_attention_impl()
    return f"{FA2}, because {obstacles[0]}"


def _activate(wanted: AttentionKernel, device: torch.device) -> str | None:
    obstacle = obstacle_to_fa3(device)
    if obstacle is not None and wanted == "fa3":
        raise UserError(
            f"learner.attention=fa3: {obstacle}; install it as docs/operations.md says, or set learner.attention=auto"
        )
    return obstacle
