"""Whether each part of a run fits the memory of a GPU: predicted from the models' configurations, nothing is loaded.

What is refused would fail for certain: a rank is compared without what CUDA and NCCL take themselves, an engine with
its weights and one sequence alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.model_folder import folder_or_hub_id, read_model_config
from cluster.doctor.facts import node_facts
from cluster.doctor.findings import gpu_faults
from cluster.doctor.gpus import smallest_card
from cluster.recipe.config import RunConfig
from cluster.recipe.model_shape import BYTES, model_shape
from curriculum.errors import UserError
from learner.memory import ModelShape, RankBytes, rank_bytes
from reward.config import VllmJudge

GIB = 1 << 30
LEAST_BYTES = GIB // 2
"""A part below half of this takes no words in a message."""


def check_cards(config: RunConfig, card_bytes: int | None) -> None:
    """Compare learner, engines and judge with the smallest GPU; without a known GPU or shape nothing is compared.

    Raises:
        UserError: a part does not fit; one line for each.
    """
    if config.device == "cpu" or card_bytes is None:
        return
    key = "model.path"
    model = read_model_config(
        folder_or_hub_id(config.model.path, key=key), key=key, trust_remote_code=config.model.trust_remote_code
    )
    faults = list(_card_faults(config, model, card_bytes))
    if faults:
        raise UserError(*faults)


def check_this_machine(config: RunConfig) -> None:
    """Do that with the GPUs of this machine if it has any, after a look at its driver; not with RAY_ADDRESS set.

    Raises:
        UserError: they cannot be used, or a part does not fit; one line for each.
    """
    facts = node_facts(str(Path()))
    if config.device == "cpu" or os.environ.get("RAY_ADDRESS") or facts.gpus.driver is None:
        return
    if faults := list(gpu_faults(facts)):
        raise UserError(*(f"{facts.name}: {fault}" for fault in faults))
    check_cards(config, smallest_card([facts.gpus]))


def predicted_rank(config: RunConfig, shape: ModelShape) -> RankBytes:
    """Return what a rank of the learner takes on its GPU."""
    learner = config.learner
    return rank_bytes(
        shape,
        row_tokens=longest_row(config),
        num_ranks=learner.num_ranks,
        sequence_parallel=learner.sequence_parallel,
        weight_bytes=BYTES[learner.dtype],
        checkpointing=learner.gradient_checkpointing,
        offload=learner.offload,
        has_reference=learner.kl_coefficient > 0,
    )


def longest_row(config: RunConfig) -> int:
    """Return the tokens of the longest row: a group of the longest prompt and answers, as far as a row may go."""
    group = config.max_prompt_tokens + config.rollout.group_size * config.max_response_tokens
    limit = config.learner.max_tokens_per_microbatch
    return min(limit, group) if config.curriculum.phases else limit


def engine_bytes(shape: ModelShape, *, num_gpus: int, value_bytes: int, tokens: int) -> int:
    """Return the least that an engine takes on each of its GPUs: its weights, and one sequence in the KV cache.

    Args:
        shape: of the model.
        num_gpus: that share the weights; heads of keys and values beyond their number are repeated.
        value_bytes: size of a weight and of a number in the cache.
        tokens: of the longest sequence.
    """
    heads = max(1, shape.kv_heads // num_gpus)
    cache = 2 * shape.layers * heads * shape.head_width * value_bytes * tokens
    return value_bytes * -(-shape.weights // num_gpus) + cache


def _card_faults(config: RunConfig, model: Any, card_bytes: int) -> Iterator[str]:
    if shape := model_shape(model):
        rank = predicted_rank(config, shape)
        if rank.tensors > card_bytes:
            yield _rank_fault(config, rank, card_bytes)
        engine = config.rollout.engine
        if config.curriculum.phases:
            yield from _engine_fault(
                "rollout.engine",
                engine_bytes(
                    shape,
                    num_gpus=engine.tensor_parallel_size,
                    value_bytes=BYTES[engine.dtype],
                    tokens=config.max_model_len,
                ),
                f"one sequence of {config.max_model_len} tokens",
                engine.gpu_memory_utilization,
                card_bytes,
                f"raise it or tensor_parallel_size={engine.tensor_parallel_size}, or lower curriculum.phases",
            )
    judge = config.reward.judge
    if isinstance(judge, VllmJudge) and config.curriculum.phases:
        key = "reward.judge.model"
        shape = model_shape(read_model_config(folder_or_hub_id(judge.model, key=key), key=key))
        own = judge.engine_config(on_gpu=True)
        if shape is not None:
            needed = engine_bytes(
                shape, num_gpus=own.tensor_parallel_size, value_bytes=BYTES[own.dtype], tokens=judge.max_model_len
            )
            yield from _engine_fault(
                "reward.judge",
                needed,
                f"one sequence of max_model_len={judge.max_model_len} tokens",
                judge.gpu_memory_utilization,
                card_bytes,
                f"raise it or num_gpus={judge.num_gpus:g}, or lower max_model_len",
            )


def _engine_fault(key: str, needed: int, sequence: str, share: float, card_bytes: int, way_out: str) -> Iterator[str]:
    if needed > share * card_bytes:
        yield (
            f"{key}.gpu_memory_utilization={share:g}: is {_gib(share * card_bytes)} of the smallest GPU's "
            f"{_gib(card_bytes)}, and the weights with {sequence} take {_gib(needed)} on each GPU; {way_out}"
        )


def _rank_fault(config: RunConfig, rank: RankBytes, card_bytes: int) -> str:
    named = {
        "activations": rank.activations,
        "optimizer": rank.optimizer,
        "gradients": rank.gradients,
        "weights": rank.weights,
        "reference": rank.reference,
        "layers in use": rank.gathered + rank.reduced,
    }
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in named.items() if size >= LEAST_BYTES)
    return (
        f"learner.num_ranks={config.learner.num_ranks}: a rank takes {_gib(rank.tensors)} ({parts}), the smallest GPU "
        f"has {_gib(card_bytes)}; {', '.join(_ways_out(config))}"
    )


def _ways_out(config: RunConfig) -> Iterator[str]:
    """Yield what helps, what costs least first."""
    learner = config.learner
    if not learner.gradient_checkpointing:
        yield "set learner.gradient_checkpointing=true"
    if missing := [kind for kind in ("optimizer", "parameters") if kind not in learner.offload]:
        yield f"add {missing[0]} to learner.offload"
    yield f"raise num_ranks or learner.sequence_parallel={learner.sequence_parallel}"
    yield f"or lower learner.max_tokens_per_microbatch={learner.max_tokens_per_microbatch}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
