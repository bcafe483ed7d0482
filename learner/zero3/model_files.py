"""What a Hugging Face folder holds besides its weights, taken from the base model as it is.

Loading and saving would change a tokenizer's class, and refuse a generation_config.json that is read without complaint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from actors.rope import set_in_file
from curriculum.errors import UserError, library_words

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.model",
)
"""Names of the files that make up a tokenizer in a Hugging Face folder."""
_OTHERS = (CONFIG, GENERATION, "LICENSE*", "README.md")
_CODE = "*.py"
_DTYPE_KEYS = ("dtype", "torch_dtype")
"""Where a configuration names the type of the weights; older versions of the library read the second one only."""
DTYPE_NAMES: Final = {"fp32": "float32", "bf16": "bfloat16"}
"""By `learner.dtype`."""


def copy_model_files(
    model_path: str, directory: Path, *, dtype: str, with_code: bool, overrides: Mapping[str, Any] | None = None
) -> None:
    """Copy configuration, tokenizer, generation settings, licence and card of a model; dtype and overrides are set.

    Args:
        model_path: folder or hub id.
        directory: an existing folder.
        dtype: name that torch has for the type of the weights, for example `bfloat16`.
        with_code: copy the code that comes with the model, too.
        overrides: values of the configuration, as `config_overrides` returns them.

    Raises:
        UserError: its configuration is no JSON object.
        OSError: a file cannot be read or written.
    """
    patterns = (*TOKENIZER_FILES, *_OTHERS, *((_CODE,) if with_code else ()))
    source = Path(model_path)
    if not source.is_dir():
        import huggingface_hub

        hub: Any = huggingface_hub
        source = Path(hub.snapshot_download(model_path, allow_patterns=list(patterns)))
    for path in sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, directory / path.name)
    _set_values(directory / CONFIG, dtype, overrides or {}, model_path)


def _set_values(path: Path, dtype: str, overrides: Mapping[str, Any], model_path: str) -> None:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        keys = [key for key in _DTYPE_KEYS if key in config] or _DTYPE_KEYS[:1]
        config |= dict.fromkeys(keys, dtype)
        set_in_file(config, overrides)
    except (ValueError, TypeError) as error:
        raise UserError(f"{model_path}: its config.json cannot be read ({library_words(error)}); mend it") from error
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
