"""What the configuration of a model says about heads and KV cache, checked against a recipe."""

from __future__ import annotations

from typing import Any

from actors.model_folder import folder_or_hub_id, read_model_config
from actors.vllm_arguments import CPU_BLOCK_TOKENS
from cluster.recipe.config import RunConfig
from curriculum.errors import UserError
from reward.config import VllmJudge

BYTES = {"fp32": 4, "bf16": 2}


def check_shape(config: RunConfig, model_path: str) -> None:
    """Check what engines and learner would refuse once they have loaded the model.

    Raises:
        UserError: ranks or GPUs cannot share the heads, or the KV cache of a CPU does not hold one prompt and response.
    """
    model = read_model_config(model_path, key="model.path", trust_remote_code=config.model.trust_remote_code)
    _check_heads(config, model)
    if config.device != "cpu":
        return
    engine = config.rollout.engine
    if config.curriculum.phases:
        _check_cache(
            model,
            "rollout.engine.cpu_kv_cache_bytes",
            engine.cpu_kv_cache_bytes,
            BYTES[engine.dtype],
            config.max_model_len,
            "lower curriculum.phases or rollout.max_response_tokens",
        )
    judge = config.reward.judge
    if isinstance(judge, VllmJudge):
        key = "reward.judge.model"
        _check_cache(
            read_model_config(folder_or_hub_id(judge.model, key=key), key=key),
            "reward.judge.cpu_kv_cache_bytes",
            judge.cpu_kv_cache_bytes,
            BYTES["fp32"],
            judge.max_model_len,
            "lower reward.judge.max_model_len",
        )


def cache_bytes_per_token(model: Any, value_bytes: int) -> int | None:
    """Return the size of one token in the KV cache; None where not all layers keep plain keys and values of it.

    Args:
        model: configuration of the transformers library.
        value_bytes: size of one number.
    """
    text: Any = model.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ("full_attention",))
    heads, layers = getattr(text, "num_attention_heads", None), getattr(text, "num_hidden_layers", None)
    if not (heads and layers) or kinds != {"full_attention"} or getattr(text, "kv_lora_rank", None):
        return None
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * width * value_bytes


def _check_heads(config: RunConfig, model: Any) -> None:
    text: Any = model.get_text_config()
    heads: int | None = getattr(text, "num_attention_heads", None)
    if heads is None:
        return
    workers, ranks = config.rollout.engine.tensor_parallel_size, config.learner.sequence_parallel
    if heads % workers:
        raise UserError(
            f"rollout.engine.tensor_parallel_size={workers}: does not divide the {heads} attention heads of "
            f"model.path={config.model.path!r}; use one of {[n for n in range(1, heads + 1) if not heads % n]}"
        )
    if ranks > 1:
        from learner.attention.ulysses import check_heads

        check_heads(heads, getattr(text, "num_key_value_heads", None) or heads, ranks)


def _check_cache(model: Any, key: str, cache_bytes: int, value_bytes: int, max_model_len: int, way_out: str) -> None:
    per_token = cache_bytes_per_token(model, value_bytes)
    if per_token is None:
        return
    needed = -(-max_model_len // CPU_BLOCK_TOKENS) * CPU_BLOCK_TOKENS * per_token
    if cache_bytes < needed:
        raise UserError(
            f"{key}={cache_bytes}: holds {cache_bytes // per_token} tokens of this model ({per_token} bytes each), "
            f"fewer than one prompt with its response, {max_model_len}; raise it to at least {needed}, or {way_out}"
        )
