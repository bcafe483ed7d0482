"""A Hugging Face folder: weights in files that transformers and vLLM find, beside whatever else it needs.

Host memory holds the weights of one file at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from curriculum.files import begin_folder, discard_folder, file_errors, finish_folder, write_text

_safetensors: Any = safetensors.torch  # its declarations have no complete types

MAX_FILE_BYTES = 5_000_000_000
"""Size of a file of weights, as that of most published models."""


def write_model(
    directory: Path,
    add_files: Callable[[Path], None],
    weights: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a Hugging Face folder; it appears whole, and replaces an earlier one.

    Args:
        directory: the folder; a link is followed.
        add_files: writes everything but the weights into a folder.
        weights: by their Hugging Face names; shape and dtype are looked at only.
        read: returns the weight of a name; called in the order of `write_order`.
        max_file_bytes: size of a file of weights; only one that holds a single larger tensor is larger.

    Raises:
        UserError: it cannot be written.
    """
    partial = begin_folder(directory)
    try:
        with file_errors(directory, "written"):
            add_files(partial)
            _write_weights(partial, weights, read, max_file_bytes)
        finish_folder(directory)
    except BaseException:
        discard_folder(directory)
        raise


def write_order(weights: Mapping[str, Tensor], *, max_file_bytes: int = MAX_FILE_BYTES) -> list[str]:
    """Return the names of weights in the order in which `write_model` reads them."""
    files = _split(weights, max_file_bytes).filename_to_tensors
    return [name for names in files.values() for name in names]


def _split(weights: Mapping[str, Tensor], max_file_bytes: int) -> Any:
    """Divide weights into files named as transformers names them."""
    import huggingface_hub

    hub: Any = huggingface_hub
    return hub.split_torch_state_dict_into_shards(
        dict(weights), filename_pattern="model{suffix}.safetensors", max_shard_size=max_file_bytes
    )


def _write_weights(
    directory: Path, weights: Mapping[str, Tensor], read: Callable[[str], Tensor], max_file_bytes: int
) -> None:
    """Write the files of weights, and the index of several."""
    split = _split(weights, max_file_bytes)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: read(name).contiguous() for name in names}
        _safetensors.save_file(tensors, directory / file, metadata={"format": "pt"})
        del tensors  # before the next file is read
    if split.is_sharded:
        total = {"total_parameters": sum(weight.numel() for weight in weights.values()), **split.metadata}
        index = {"metadata": total, "weight_map": split.tensor_to_filename}
        write_text(directory / "model.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
