"""Names of models, a Hugging Face folder on this machine or a hub id, and what their configuration says."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import xxhash

from actors.config import YarnConfig
from actors.rope import has_yarn, reach, yarn_overrides
from curriculum.errors import UserError, library_words
from curriculum.files import expanded, file_errors
from curriculum.hub import is_hub_id

WHOLE_BYTES = 1 << 28
"""Files up to this size are digested whole, larger ones by samples."""
_NUM_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16
_FIELD = re.compile(r"[Ff]ield '(\w+)'")
"""In what the hub library says of a value of another type."""
_NO_PART = ("README", "LICENSE", ".git")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, or what names the files of several."""


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


def context_length(
    model: str, *, key: str, trust_remote_code: bool = False, yarn: YarnConfig | None = None
) -> int | None:
    """Return the longest sequence that a model holds, in tokens, rope scaling included; None if it does not say.

    Args:
        model: folder or hub id.
        key: recipe key or option that names it, for messages.
        trust_remote_code: run code that comes with the model.
        yarn: put on the rope of the model.

    Raises:
        UserError: no configuration can be read there, its lengths or rope factors are no numbers, or it takes no YaRN.
    """
    text, name = read_model_config(model, key=key, trust_remote_code=trust_remote_code), f"{key}={model!r}"
    return reach(text, name) if yarn is None else yarn_overrides(text, yarn, name)["max_position_embeddings"]


def config_overrides(
    model: str, yarn: YarnConfig | None, *, key: str = "model.path", trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return what the recipe sets in the configuration of a model: YaRN, the same for everyone who loads or writes it.

    Args:
        model: folder or hub id.
        yarn: of the recipe; None sets nothing.
        key: recipe key or option that names the model, for messages.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: no configuration can be read there, or the model takes no YaRN.
    """
    if yarn is None:
        return {}
    text = read_model_config(model, key=key, trust_remote_code=trust_remote_code)
    return yarn_overrides(text, yarn, f"{key}={model!r}")


def yarn_length(model: str, *, trust_remote_code: bool = False) -> int | None:
    """Return the longest sequence of a folder that has YaRN by itself, in tokens; None for other models.

    vLLM expects that length in `max_position_embeddings`, where published folders have the one before scaling.
    """
    text = read_model_config(model, key="model", trust_remote_code=trust_remote_code)
    return reach(text, f"model={model!r}") if has_yarn(text) else None


def read_model_config(model: str, *, key: str, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a model, or of the part of it that reads text, as the transformers library has it.

    Args:
        model: folder or hub id.
        key: recipe key or option that names it, for messages.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: no configuration can be read there.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    loader: Any = AutoConfig
    name = f"{key}={model!r}"
    try:
        return loader.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    except StrictDataclassError as error:
        field = _FIELD.search(str(error))
        what = f"{field[1]} in its config.json holds" if field else "its config.json holds"
        raise UserError(f"{name}: {what} something else than a model of its type takes; correct it") from error
    except Exception as error:  # a config.json with values of other kinds fails in any way
        raise UserError(
            f"{name}: no model configuration can be read there ({library_words(error)}); check the name, the network, "
            "and config.json"
        ) from error


def model_digest(model: str) -> str:
    """Return what tells a model from another one: the commit of a hub id, or a digest of the files of a folder.

    Configuration and tokenizer are read whole, weights beyond `WHOLE_BYTES` by their size and 256 blocks of 64 KiB, the
    first and the last among them: that tells trained weights apart, and takes a second instead of minutes.

    Args:
        model: folder or hub id; of a hub id the configuration has been loaded.

    Raises:
        UserError: a file cannot be read.
    """
    folder = Path(model)
    if not folder.is_dir():
        return _commit(model)
    digest = xxhash.xxh3_128()
    with file_errors(folder, "read"):
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if not path.name.startswith(_NO_PART):
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
                _add_content(digest, path)
    return digest.hexdigest()


def num_parameters(model: str) -> int | None:
    """Return the number of weights in the safetensors of a folder; None for a hub id or other files."""
    import safetensors

    opened: Any = safetensors.safe_open
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    total = 0
    for path in files:
        with opened(path, framework="numpy") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None


def weight_files(folder: Path, *, name: str) -> list[str]:
    """Return the names of the files that hold the weights of a model, as transformers and vLLM look for them.

    Args:
        folder: a Hugging Face folder; its index is enough.
        name: of the model, for messages.

    Raises:
        UserError: there are none, or the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise UserError(
            f"{name}: no weights (*.safetensors) in the folder; download the whole model, or save it once with "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(FOLDER), and give that folder"
        )
    try:
        with file_errors(folder / WEIGHTS_INDEX, "read"):
            index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return sorted({str(file) for file in index["weight_map"].values()})
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{name}: {WEIGHTS_INDEX} is no index of weights; download the model again") from error


def _add_content(digest: xxhash.xxh3_128, path: Path) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        if num_bytes <= WHOLE_BYTES:
            digest.update(file.read())
            return
        for sample in range(_NUM_SAMPLES):
            file.seek((num_bytes - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _commit(hub_id: str) -> str:
    """Return the commit whose configuration lies in the cache; the id itself if there is none."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id, "config.json")
    return Path(path).parent.name if isinstance(path, str) else hub_id
