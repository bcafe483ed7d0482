"""The DeepSpeed configuration as a pure function of the learner's."""

from __future__ import annotations

from typing import Any

from learner.config import LearnerConfig

PERSISTENT_PARAMETER_ELEMENTS = 100_000
"""Weights smaller than this are not partitioned: norms and biases of any model, all weights of a tiny one."""
BUCKET_ELEMENTS = 50_000_000
"""Elements reduced or gathered in one collective."""


def zero3_config(config: LearnerConfig, *, on_gpu: bool = False) -> dict[str, Any]:
    """Return the settings of `deepspeed.initialize` for a trained model.

    The optimizer is passed to it; `LearnerEngine` sets where an accumulation of gradients ends. Gradients of a bf16
    model come from a backward pass in bf16; from there on they are averaged over the ranks and summed up in fp32.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip,
        "steps_per_print": None,
        "bf16": {"enabled": config.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": _zero_optimization(config, on_gpu),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }


def zero3_frozen_config(config: LearnerConfig, *, on_gpu: bool = False) -> dict[str, Any]:
    """Return the settings for a model that is only forwarded; one that is used rarely stays in host memory."""
    settings = zero3_config(config, on_gpu=on_gpu)
    settings["zero_optimization"].pop("offload_optimizer", None)
    if config.kl_coefficient == 0:
        settings["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return settings


def _zero_optimization(config: LearnerConfig, on_gpu: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET_ELEMENTS if on_gpu else BUCKET_ELEMENTS // 10,
        "memory_efficient_linear": False,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS if on_gpu else 0,
        "stage3_param_persistence_threshold": PERSISTENT_PARAMETER_ELEMENTS,
    }
    if config.ranks_per_copy is not None:
        settings["zero_hpz_partition_size"] = config.ranks_per_copy
    host = {"device": "cpu", "pin_memory": on_gpu}
    if "optimizer" in config.offload:
        settings["offload_optimizer"] = host
    if "parameters" in config.offload:
        settings["offload_param"] = host
    return settings
