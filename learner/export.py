"""A Hugging Face folder from the files of a checkpoint: no rank, no device, one file of weights in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curriculum.errors import UserError, library_words
from curriculum.files import write_text
from curriculum.shared_folder import SharedFolder
from learner.weights.finite import check_finite, is_finite
from learner.zero3.checkpoint import open_shards, readable
from learner.zero3.model_folder import write_model

CARD = "README.md"
_PREFIX = "causal_lm."
"""Of the names in a checkpoint: the model is a part of the `Policy`."""


def export_checkpoint(
    parts: SharedFolder,
    files: Path,
    directory: Path,
    *,
    card: str,
    trust_remote_code: bool = False,
    keep_going: Callable[[], None] = lambda: None,
) -> None:
    """Write the model that a checkpoint holds; the folder appears whole, and replaces an earlier one.

    Args:
        parts: the learner's part of a checkpoint, proved.
        files: a folder with everything but the weights (`copy_model_files`).
        directory: the folder to write; a link is followed.
        card: text of its README.md.
        trust_remote_code: run code that comes with the model.
        keep_going: called before every tensor; may raise to give up.

    Raises:
        UserError: the checkpoint is of another model than `files`, or something cannot be read or written.
        NonFiniteWeights: some weights are no finite numbers.
    """
    with readable(parts):
        shards = open_shards(parts)
        sizes = {name.removeprefix(_PREFIX): size for name, size in shards.sizes.items()}
    whole = empty_weights(files, trust_remote_code=trust_remote_code)
    if {name: tensor.numel() for name, tensor in whole.items()} != sizes:
        raise UserError(f"{parts}: belongs to another model than {files}; export it with the model it came from")

    def read(name: str) -> Tensor:
        keep_going()
        with readable(parts):
            weight = shards.whole(_PREFIX + name).view(whole[name].shape).to(whole[name].dtype)
        check_finite([] if is_finite(weight) else [name], where="export")
        return weight

    def copy_files(partial: Path) -> None:
        shutil.copytree(files, partial, dirs_exist_ok=True)
        write_text(partial / CARD, card)

    write_model(directory, copy_files, whole, read)


def empty_weights(files: Path, *, trust_remote_code: bool) -> dict[str, Tensor]:
    """Return the parameters of `empty_model`, tied ones once, in the order of the learner."""
    return dict(empty_model(files, trust_remote_code=trust_remote_code).named_parameters())


def empty_model(files: Path, *, trust_remote_code: bool) -> Any:
    """Build a model without the values of its parameters.

    Args:
        files: folder with its configuration, which names their type.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: no model can be built from its configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config_of: Any = AutoConfig
    build: Any = AutoModelForCausalLM
    try:
        config = config_of.from_pretrained(files, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return build.from_config(config, dtype=config.dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # classes of models raise types of their own
        raise UserError(
            f"{files}: no model can be built from its config.json ({library_words(error)}); bring back the one it had"
        ) from error
