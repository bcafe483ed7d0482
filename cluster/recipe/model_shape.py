"""What the configuration of a model says about heads and KV cache, checked against a recipe."""

from __future__ import annotations

from typing import Any

from actors.model_folder import folder_or_hub_id, read_model_config
from actors.vllm_arguments import CPU_BLOCK_TOKENS
from cluster.recipe.config import RunConfig
from curriculum.errors import UserError
from learner.memory import ModelShape
from reward.config import VllmJudge

BYTES = {"fp32": 4, "bf16": 2}
VOCABULARY_STEP = 64
"""Rows to which vLLM fills up embedding and head (`DEFAULT_VOCAB_PADDING_SIZE`)."""
SHARED, ROUNDING = 0.9, 1e-9
"""Part of its share of a GPU that an engine may plan with where several share it: vLLM wants its part free when it
starts, and each of the others has taken about 1.2 GiB beyond its own."""


def check_shape(config: RunConfig, model_path: str) -> None:
    """Check what engines and learner would refuse once they have loaded the model.

    Raises:
        UserError: ranks or GPUs cannot share the heads, or the KV cache of a CPU does not hold one prompt and response.
    """
    model = read_model_config(model_path, key="model.path", trust_remote_code=config.model.trust_remote_code)
    _check_heads(config, model)
    judge = config.reward.judge if config.curriculum.phases else None
    if config.device != "cpu":
        if isinstance(judge, VllmJudge):
            _check_judge(config, judge)
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


def model_shape(model: Any) -> ModelShape | None:
    """Return the sizes of a dense decoder; None for models with experts, compressed keys, or attention of other kinds.

    Args:
        model: configuration of the transformers library.
    """
    text: Any = model.get_text_config()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes: list[Any] = [getattr(text, name, None) for name in names]
    has_experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    if has_experts or cache_bytes_per_token(model, 1) is None or not all(isinstance(size, int) for size in sizes):
        return None
    hidden, mlp, layers, heads, vocabulary = sizes
    return ModelShape(
        hidden=hidden,
        mlp=mlp,
        layers=layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=getattr(text, "head_dim", None) or hidden // heads,
        vocabulary=vocabulary,
        ties_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def check_tensor_parallel(model: Any, num_gpus: int, *, key: str, name: str) -> None:
    """Check that the GPUs of an engine can share a model, as vLLM divides it: heads, the MLP, the vocabulary.

    Key-value heads are divided, or repeated evenly where there are more GPUs than heads; the vocabulary is filled up to
    a multiple of `VOCABULARY_STEP` before it is divided.

    Args:
        model: configuration of the transformers library.
        num_gpus: of one engine.
        key: recipe key that decides it.
        name: of the model, for the message.

    Raises:
        UserError: they cannot; it names what does not divide, and numbers that do.
    """
    text: Any = model.get_text_config()
    sizes = _divided(text)
    if num_gpus == 1 or not sizes or not (fault := _undivided(sizes, num_gpus)):
        return
    most = sizes["attention heads"]
    fitting = [n for n in range(1, most + 1) if not _undivided(sizes, n)]
    raise UserError(f"{key}={num_gpus}: does not divide the {sizes[fault]} {fault} of {name}; use one of {fitting}")


def _divided(text: Any) -> dict[str, int]:
    """Return what vLLM divides between GPUs, by its name in messages; empty if the model does not say."""
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        return {}
    vocabulary = getattr(text, "vocab_size", None)
    sizes = {
        "attention heads": heads,
        "key-value heads": getattr(text, "num_key_value_heads", None) or heads,
        "columns of the MLP (intermediate_size)": getattr(text, "intermediate_size", None),
        f"entries of the vocabulary, filled up to a multiple of {VOCABULARY_STEP},": vocabulary
        and -(-vocabulary // VOCABULARY_STEP) * VOCABULARY_STEP,
    }
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _undivided(sizes: dict[str, int], num_gpus: int) -> str | None:
    """Return the name of the first size that so many GPUs cannot share evenly."""
    for name, size in sizes.items():
        is_repeated = name == "key-value heads" and num_gpus > size
        if num_gpus % size if is_repeated else size % num_gpus:
            return name
    return None


def _check_judge(config: RunConfig, judge: VllmJudge) -> None:
    """Check the GPUs of a judge.

    Raises:
        UserError: it has none, or too much of one that others share, or they cannot share its model.
    """
    key = "reward.judge.num_gpus"
    if judge.num_gpus == 0:
        raise UserError(f"{key}=0: with device=cuda a judge of type vllm needs a GPU, or a share of one such as 0.5")
    most = SHARED * judge.num_gpus
    if judge.num_gpus < 1 and judge.gpu_memory_utilization > most + ROUNDING:
        raise UserError(
            f"reward.judge.gpu_memory_utilization={judge.gpu_memory_utilization:g}: with {key}={judge.num_gpus:g} "
            f"others share its GPU, and beside each engine CUDA takes memory of its own; lower it to {most:g} or less"
        )
    model = "reward.judge.model"
    shape = read_model_config(folder_or_hub_id(judge.model, key=model), key=model)
    check_tensor_parallel(shape, max(1, int(judge.num_gpus)), key=key, name=f"{model}={judge.model!r}")


def _check_heads(config: RunConfig, model: Any) -> None:
    text: Any = model.get_text_config()
    if config.curriculum.phases:
        check_tensor_parallel(
            model,
            config.rollout.engine.tensor_parallel_size,
            key="rollout.engine.tensor_parallel_size",
            name=f"model.path={config.model.path!r}",
        )
    heads, ranks = getattr(text, "num_attention_heads", None), config.learner.sequence_parallel
    if heads is not None and ranks > 1:
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
