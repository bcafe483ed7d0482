"""Names of models, a Hugging Face folder on this machine or a hub id, and what their configuration says."""

from __future__ import annotations

from typing import Any

from curriculum.errors import UserError, library_words
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
        UserError: no configuration can be read there.
    """
    config = read_model_config(model, key=key, trust_remote_code=trust_remote_code)
    positions: Any = getattr(config, "max_position_embeddings", None)
    rope: Any = getattr(config, "rope_parameters", None) or {}
    try:
        original = rope.get("original_max_position_embeddings")
        extended = int(original * rope.get("factor", 1)) if original else 0
        return None if positions is None else max(int(positions), extended)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{key}={model!r}: max_position_embeddings={positions!r:.40} with rope_parameters={rope!r:.80} in "
            "config.json are no lengths; correct them"
        ) from error


def read_model_config(model: str, *, key: str, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a model, as the transformers library reads it.

    Args:
        model: folder or hub id.
        key: recipe key or option that names it, for messages.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: no configuration can be read there.
    """
    from transformers import AutoConfig

    loader: Any = AutoConfig
    try:
        return loader.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # a config.json with values of other kinds fails in any way
        raise UserError(
            f"{key}={model!r}: no model configuration can be read there ({library_words(error)}); check the name, the "
            "network, and config.json"
        ) from error
