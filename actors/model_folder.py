"""Names of models, a Hugging Face folder on this machine or a hub id, and what their configuration says."""

from __future__ import annotations

from typing import Any

from curriculum.errors import UserError, first_line
from curriculum.files import expanded, file_errors
from curriculum.hub import is_hub_id


def folder_or_hub_id(model: str, *, key: str, others: str = "") -> str:
    """Return a folder as an absolute path, so that processes find it from any directory; a hub id as it is.

    Args:
        model: the name.
        key: recipe key or option that has it, for messages.
        others: other values that the key may have, for messages; ends with a comma and a space.

    Raises:
        UserError: it is neither.
    """
    name = f"{key}={model!r}"
    with file_errors(name, "read"):
        folder = expanded(model, name=name)
        is_folder, is_file = bool(model) and folder.is_dir(), folder.is_file()
    if is_folder:
        return str(folder.resolve())
    if is_file or not is_hub_id(model):
        what = "is a file" if is_file else "no such folder"
        raise UserError(f"{name}: {what}; give {others}a Hugging Face folder or a hub id (owner/name)")
    return model


def context_length(model: str, *, key: str, trust_remote_code: bool = False) -> int | None:
    """Return the longest sequence that a model holds, in tokens, rope scaling included; None if it does not say.

    Args:
        model: folder or hub id.
        key: recipe key or option that names it, for messages.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: no configuration can be read there, or its lengths or rope factors are no numbers.
    """
    text = _text_config(model, key=key, trust_remote_code=trust_remote_code)
    positions: Any = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    name = f"{key}={model!r}"
    positions = int(_number(positions, f"{name}: max_position_embeddings", at_least=2))
    return max([positions, *(_scaled(rope, positions, name) for rope in _rope_scalings(text))])


def yarn_length(model: str, *, trust_remote_code: bool = False) -> int | None:
    """Return the longest sequence of a model with YaRN, in tokens; None for other models.

    vLLM expects that length in `max_position_embeddings`, where published folders have the one before scaling.
    """
    text = _text_config(model, key="model", trust_remote_code=trust_remote_code)
    if not any(rope.get("rope_type") == "yarn" for rope in _rope_scalings(text)):
        return None
    return context_length(model, key="model", trust_remote_code=trust_remote_code)


def _text_config(model: str, *, key: str, trust_remote_code: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    loader: Any = AutoConfig
    name = f"{key}={model!r}"
    try:
        return loader.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: its config.json cannot be used ({reason}); mend it") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{name}: no model configuration can be read there ({first_line(error)}); check the name and the network"
        ) from error


def _rope_scalings(text: Any) -> list[dict[str, Any]]:
    """Return the scalings of a configuration, one for each type of layer where they differ.

    Gemma 3 has none here: it states the scaled length.
    """
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    per_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    return [] if "gemma3" in text.model_type else per_layer_type or [rope]


def _scaled(rope: dict[str, Any], positions: int, name: str) -> int:
    """Return the length with one rope scaling, as vLLM and transformers understand its type."""
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if factor is None or kind not in ("linear", "dynamic", "yarn"):
        return positions  # other types state the scaled length
    factor = _number(factor, f"{name}: the rope factor", at_least=1)
    original = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    if original is not None:
        positions = int(_number(original, f"{name}: original_max_position_embeddings", at_least=2))
    return int(positions * factor)


def _number(value: Any, name: str, *, at_least: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < float("inf"):
        raise UserError(f"{name} is {value!r}, not a number from {at_least} on; mend its config.json")
    return value
