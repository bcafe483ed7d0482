"""Set-up of a rank: the process group, its place among the ranks that share a row, DeepSpeed around a policy."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learner.attention.flash import unsupported_reason
from learner.attention.ulysses import HeadExchange, check_heads
from learner.collectives import new_group
from learner.config import LearnerConfig
from learner.forward.row_tensors import Placement
from learner.objective.settings import torch_dtype
from learner.zero3.model_weights import fill, give_memory
from learner.zero3.policy import Policy

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)


def join_process_group(rank: int, world_size: int, on_gpu: bool) -> torch.device:
    """Set the environment that DeepSpeed reads on import, join the ranks, and return the device of this one."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cuda" if on_gpu else "cpu")
    if not on_gpu:
        os.environ.setdefault("LOCAL_SIZE", str(world_size))  # else DeepSpeed runs `numactl` in every backward pass
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning
    )
    import deepspeed

    # A shared-memory all-reduce for inference, which is never called here; compiling it would take half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_gpu:
        torch.cuda.set_device(local_rank)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


def place(config: LearnerConfig, policy: Policy, device: torch.device, *, rank: int) -> Placement:
    """Create the groups of ranks that share a row; return the device and the place of this rank. Collective.

    Raises:
        UserError: the heads of the model cannot be shared by so many ranks.
    """
    size = config.sequence_parallel
    if size == 1:
        return Placement(device=device)
    shape = policy.causal_lm.config
    check_heads(shape.num_attention_heads, shape.num_key_value_heads, size)
    groups = [new_group(list(range(start, start + size))) for start in range(0, config.num_ranks, size)]
    exchange = HeadExchange(groups[rank // size], size)
    return Placement(device=device, exchange=exchange, rank=rank % size)


def supports_sharing(config: LearnerConfig, policy: Policy, device: torch.device) -> bool:
    """Return whether the device has a kernel for shared prompts; log why not."""
    shape = policy.causal_lm.config
    head_width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    reason = unsupported_reason(device, torch_dtype(config), head_width)
    if reason is not None:
        logger.warning("shared prompts off: %s; every response is forwarded with its own copy of the prompt", reason)
    return reason is None


def take_part(settings: dict[str, Any], device: torch.device) -> Callable[[nn.Parameter, Tensor], None]:
    """Return what gives a parameter its memory under ZeRO-3: the part of this rank, filled from a mapped file.

    A parameter is whole on the device only while it is divided. Collective: all ranks take the same parameters in the
    same order.

    Args:
        settings: those of `deepspeed.initialize`; they say whether the parts lie on the device or in host memory.
        device: of this rank.
    """
    import deepspeed
    from deepspeed.utils import groups as rank_groups

    group_of_node: Any = rank_groups._get_zero_param_intra_parallel_group  # pyright: ignore[reportPrivateUsage]

    def take(parameter: Any, stored: Tensor) -> None:
        give_memory(parameter, device)
        deepspeed.zero.Init(
            nn.ParameterList([parameter]),
            config_dict_or_path=settings,
            zero_param_parallel_group=group_of_node(),  # if it is None, it is made, which may happen once only
        )
        part = parameter.ds_tensor
        fill(part, parameter.ds_zero_partition_rank * len(part), stored)
        parameter.ds_secondary_tensor = None  # of `zero_hpz_partition_size`: made of what was there before

    return take


def trained_engine(policy: Policy, settings: dict[str, Any]) -> DeepSpeedEngine:
    """Wrap a policy whose parameters are divided in ZeRO-3 with AdamW."""
    import deepspeed

    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def frozen_engine(policy: Policy, settings: dict[str, Any]) -> DeepSpeedEngine:
    """Wrap a policy whose parameters are divided, and that is only forwarded, in ZeRO-3."""
    import deepspeed

    policy.requires_grad_(False).eval()
    engine, *_ = deepspeed.initialize(model=policy, config=settings, dist_init_required=False)
    return engine
