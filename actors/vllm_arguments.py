"""Environment variables and arguments of vLLM: a model, its resources, and the sampling of one group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from actors.config import EngineConfig, YarnConfig
from actors.engine_features import check_engine
from actors.model_folder import config_overrides, yarn_length
from actors.rollout import Sampling

CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Settings of vLLM on a CPU: no thread pinning, and the executor inside the engine process."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TOKENIZERS_PARALLELISM": "false",
}


DTYPES: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16"}
CPU_BLOCK_TOKENS = 32
"""Block of the KV cache on a CPU, in tokens."""
ONLY_ENDS = 1 << 30
"""Tokens between two partial outputs of an answer: an output comes with its first token and at its end only."""


def set_environment(*, on_gpu: bool) -> None:
    """Set the environment variables of vLLM; call it before vLLM is imported."""
    os.environ.update(ENVIRONMENT if on_gpu else ENVIRONMENT | CPU_ENVIRONMENT)


def engine_arguments(
    model_path: str,
    config: EngineConfig,
    *,
    max_model_len: int,
    seed: int,
    on_gpu: bool,
    trust_remote_code: bool,
    fp32_logits: bool = False,
    yarn: YarnConfig | None = None,
    sleeps: bool = False,
) -> dict[str, Any]:
    """Return the arguments of vLLM for a model and its resources.

    With `fp32_logits` the product of the LM head is not rounded to the type of the model, as in the learner. vLLM has
    that for plain heads only, so a quantised model has to do without. With `sleeps` the engine can give its memory back
    for a while, which vLLM refuses to prepare for on a CPU.
    """
    from vllm.config import WeightTransferConfig

    overrides: dict[str, Any] = {"head_dtype": "float32"} if fp32_logits else {}
    overrides |= config_overrides(model_path, yarn, trust_remote_code=trust_remote_code)
    length = None if yarn else yarn_length(model_path, trust_remote_code=trust_remote_code)
    if length is not None:
        overrides["max_position_embeddings"] = length
    resources = _gpu_resources(config, sleeps=sleeps) if on_gpu else _cpu_resources(config, max_model_len)
    return {
        "model": model_path,
        "dtype": DTYPES[config.dtype],
        "seed": seed,
        "max_model_len": max_model_len,
        "hf_overrides": overrides,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": "actors.weights.receiver.WeightReceiver",
        "weight_transfer_config": WeightTransferConfig(backend="learner"),
        "trust_remote_code": trust_remote_code,
        "disable_log_stats": True,
        **resources,
    }


def engine_config(arguments: dict[str, Any], *, is_compared: bool) -> Any:
    """Return the `vllm.config.VllmConfig` of an engine with these arguments; nothing is loaded yet.

    Args:
        arguments: as `engine_arguments` returns them.
        is_compared: whether its log-probabilities are compared with the learner's.

    Raises:
        UserError: they are, and a feature is on with which they are not those of the model.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    if is_compared:
        check_engine(config, arguments["model"])
    return config


def sampling_params(sampling: Sampling, *, seed: int, stop_token_ids: Sequence[int]) -> Any:
    """Return the `vllm.SamplingParams` of one group.

    Cumulative outputs without intermediate ones cost no more than final ones, and give partial answers at a timeout.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=sampling.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_response_tokens,
        stop_token_ids=list(stop_token_ids),
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.CUMULATIVE,
        stream_interval=ONLY_ENDS,
    )


def _gpu_resources(config: EngineConfig, *, sleeps: bool) -> dict[str, Any]:
    return {
        "enable_sleep_mode": sleeps,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_num_batched_tokens": config.max_num_batched_tokens,
    }


def _cpu_resources(config: EngineConfig, max_model_len: int) -> dict[str, Any]:
    """Return the arguments of vLLM on a CPU.

    Chunked prefill is off: vLLM 0.32 rewinds the generator of a seeded request after a chunk, which fails on a CPU.
    Blocks have the smallest size of the CPU kernels (vLLM's choice is 128), because every sample of a group computes
    the last, incomplete block of its prompt again.
    """
    return {
        "block_size": CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": config.cpu_kv_cache_bytes,
        "distributed_executor_backend": "uni",
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, config.max_num_batched_tokens or 8192),
    }
