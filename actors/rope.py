"""The rope of a model: how far its positions reach, and what puts YaRN on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from actors.config import YarnConfig
from curriculum.errors import UserError

_OWN_SCALES = ("linear", "dynamic", "yarn")
"""Types of rope with a factor on `max_position_embeddings`; other types state the scaled length."""


def reach(text: Any, name: str) -> int | None:
    """Return the longest sequence that a configuration allows, in tokens, rope scaling included; None if it says none.

    Args:
        text: configuration of the transformers library, of the part that reads text.
        name: key and value that name the model, for messages.

    Raises:
        UserError: its lengths or rope factors are no numbers.
    """
    positions: Any = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    positions = int(_number(positions, f"{name}: max_position_embeddings", at_least=2))
    return max([positions, *(_scaled(rope, positions, name) for rope in _ropes(text))])


def has_yarn(text: Any) -> bool:
    """Return whether a configuration has YaRN already."""
    return any(rope.get("rope_type") == "yarn" for rope in _ropes(text))


def yarn_overrides(text: Any, yarn: YarnConfig, name: str) -> dict[str, Any]:
    """Return the values of a configuration that put YaRN on its rope, for transformers, vLLM and config.json alike.

    `rope_parameters` is complete: vLLM 0.32 would replace a missing `rope_theta` by 10,000 without a word. And
    `max_position_embeddings` is the length after scaling, which is what vLLM 0.32 takes it for.

    Args:
        text: configuration of the transformers library, of the part that reads text.
        yarn: factor and original length.
        name: key and value that name the model, for messages.

    Raises:
        UserError: the model has no rope that YaRN can be put on, or has another YaRN already.
    """
    label = f"{name} with yarn={yarn}"
    (rope,) = _ropes(text) if len(_ropes(text)) == 1 else ({},)
    theirs = (rope.get("factor"), rope.get("original_max_position_embeddings"))
    if rope.get("rope_type") == "yarn":
        if theirs != (yarn.factor, yarn.original_max_tokens):
            raise UserError(
                f"{label}: its config.json has YaRN with factor={theirs[0]} and original_max_position_embeddings="
                f"{theirs[1]} already; give these values, or leave the key out"
            )
    elif why := _obstacle(text, rope, yarn):
        raise UserError(
            f"{label}: {why}; leave the key out, or take a Qwen2, Qwen3 or Llama model without rope scaling"
        )
    ours = {"rope_type": "yarn", "factor": yarn.factor, "original_max_position_embeddings": yarn.original_max_tokens}
    return {"rope_parameters": {**rope, **ours}, "max_position_embeddings": yarn.max_tokens}


def set_in_file(config: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put overrides into the content of a config.json, its rope under the names that the file uses already.

    Files of models that were published before 2026 have `rope_theta` and `rope_scaling`, which every version of vLLM
    and transformers reads; the others have `rope_parameters`.
    """
    config.update(overrides)
    if "rope_parameters" in overrides and ("rope_theta" in config or "rope_scaling" in config):
        rope: dict[str, Any] = dict(config.pop("rope_parameters"))
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope


def _obstacle(text: Any, rope: dict[str, Any], yarn: YarnConfig) -> str | None:
    """Return why YaRN cannot be put on a rope that has none; None if it can."""
    positions = getattr(text, "max_position_embeddings", None)
    stated = getattr(text, "original_max_position_embeddings", None)
    if not rope.get("rope_theta"):
        ropes = "a rope for each kind of layer" if _ropes(text) else "no rope (rope_parameters)"
        return f"a model of type {text.model_type} has {ropes}"
    if rope.get("rope_type") != "default" or "mrope_section" in rope:
        kind = "several axes (mrope_section)" if "mrope_section" in rope else f"rope_type={rope.get('rope_type')}"
        return f"its config.json has a rope of {kind} already"
    if getattr(text, "dual_chunk_attention_config", None):
        return "its config.json has dual_chunk_attention_config, whose rope takes no scaling"
    if positions is None or yarn.original_max_tokens > positions:
        return f"original_max_tokens is more than its max_position_embeddings={positions}"
    if stated not in (None, yarn.original_max_tokens):
        return f"its config.json has original_max_position_embeddings={stated}, which would count instead"
    return None


def _ropes(text: Any) -> list[dict[str, Any]]:
    """Return the ropes of a configuration, one for each type of layer where they differ; none where there is no rope.

    Gemma 3 has none here: it states the scaled length.
    """
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    per_layer_type = [cast("dict[str, Any]", value) for value in rope.values() if isinstance(value, dict)]
    return [] if "gemma3" in text.model_type else per_layer_type or ([rope] if rope else [])


def _scaled(rope: dict[str, Any], positions: int, name: str) -> int:
    """Return the length with one rope scaling, as vLLM and transformers understand its type."""
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if factor is None or kind not in _OWN_SCALES:
        return positions
    factor = _number(factor, f"{name}: the rope factor", at_least=1)
    original = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    if original is not None:
        positions = int(_number(original, f"{name}: original_max_position_embeddings", at_least=2))
    return int(positions * factor)


def _number(value: Any, name: str, *, at_least: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < float("inf"):
        raise UserError(f"{name} is {value!r}, not a number from {at_least} on; mend its config.json")
    return value
