"""What a run needs at its end, tried before its first step: everything of an exported model but the weights."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from actors.model_folder import config_overrides
from actors.prompt import load_tokenizer
from cluster.recipe.config import RunConfig
from cluster.recipe.preparation import Prepared
from cluster.run.checkpoints import Checkpoint
from cluster.run.metrics import METRICS
from cluster.run.model_card import model_card
from cluster.run.models import BEST
from cluster.run.progress import Progress
from curriculum.errors import UserError, library_words
from curriculum.files import begin_folder, discard_folder, file_errors, finish_folder
from curriculum.metric import is_declared
from learner.zero3.model_files import DTYPE_NAMES, GENERATION, copy_model_files

_HELD_OUT = "heldout/"
_SFT = "sft"
"""Name of the warm-up's model."""


def check_models(config: RunConfig) -> None:
    """Check that every model that the recipe asks for will have a metric to be chosen by, and a name.

    Raises:
        UserError: one line for each fault.
    """
    faults = [
        f"curriculum.phases.{index}.name={phase.name!r}: cannot be the name of a folder of models/; use letters, "
        f"digits, '-', '_' and '.', and neither {_SFT} nor {BEST}"
        for index, phase in enumerate(config.curriculum.phases)
        if not _is_folder_name(phase.name) or phase.name in (_SFT, BEST)
    ]
    if fault := _fault_of_best(config):
        faults.append(fault)
    if faults:
        raise UserError(*faults)


def rehearse(config: RunConfig, prepared: Prepared, directory: Path, *, run: str) -> list[str]:
    """Write what every model of a run has besides its weights, and read it back; models are exported with these files.

    Args:
        config: the recipe.
        prepared: its model and data.
        directory: the folder to write; it appears whole, and replaces an earlier one.
        run: name of the run.

    Returns:
        what a person should know, one line each.

    Raises:
        UserError: a model could not be exported in the end.
    """
    name = f"model.path={config.model.path!r}"
    with_code = config.model.trust_remote_code
    files = begin_folder(directory)
    try:
        with file_errors(directory, "written"):
            overrides = config_overrides(prepared.model_path, config.model.yarn, trust_remote_code=with_code)
            dtype = DTYPE_NAMES[config.learner.dtype]
            copy_model_files(prepared.model_path, files, dtype=dtype, with_code=with_code, overrides=overrides)
        _check_tokenizer(files, prepared, name, with_code=with_code)
        _check_weights(files, prepared.model_path, name, with_code=with_code)
        start = Checkpoint(path=directory, progress=Progress(), curriculum=None, inputs=prepared.inputs, digest="")
        model_card(config, start, run=run, files=files)
        notes = _note_on_generation(files, name)
        finish_folder(directory)
    except BaseException:
        discard_folder(directory)
        raise
    return notes


def _fault_of_best(config: RunConfig) -> str | None:
    metric = config.checkpoint.keep.best
    if metric is None:
        return None
    key = f"checkpoint.keep.best={metric!r}"
    known = [declared for declared in METRICS if declared.startswith(_HELD_OUT)]
    if not is_declared(metric, known):
        near = difflib.get_close_matches(metric, [other for other in known if not other.endswith("*")], n=1)
        return f"{key}: no metric of held-out questions; " + (f"did you mean {near[0]}?" if near else f"use {known[0]}")
    if config.data.evaluation is None or not config.curriculum.phases:
        return f"{key}: the recipe holds no questions out; give data.evaluation, or set checkpoint.keep.best=null"
    return None


def _is_folder_name(name: str) -> bool:
    return name[:1].isalnum() and all(char.isalnum() or char in "-_. " for char in name) and len(name.encode()) <= 100


def _check_tokenizer(files: Path, prepared: Prepared, name: str, *, with_code: bool) -> None:
    """Check that the copied files of the tokenizer are all that it needs."""
    way_out = (
        "the trained model would have no tokenizer; save the base's once with "
        "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER), and take these files"
    )
    try:
        copied = load_tokenizer(str(files), trust_remote_code=with_code)
    except UserError as error:
        raise UserError(f"{name}: its tokenizer does not load from a copy of its files ({error}); {way_out}") from error
    if not prepared.prompt.is_of(copied):
        raise UserError(f"{name}: a copy of its tokenizer's files loads as another tokenizer; {way_out}")


def _check_weights(files: Path, model_path: str, name: str, *, with_code: bool) -> None:
    """Check that a model can be built from the copied files, and that the base's weights are those of such a model."""
    from learner.export import empty_model
    from learner.zero3.model_weights import stored_weights

    try:
        model = empty_model(files, trust_remote_code=with_code)
    except UserError as error:
        raise UserError(f"{name}: could not be exported: {error}") from error
    if Path(model_path).is_dir():  # the learner checks what it downloads
        stored_weights(model, model_path)


def _note_on_generation(files: Path, name: str) -> list[str]:
    """Return a note if transformers would refuse to save the generation settings, which are copied as they are.

    Raises:
        UserError: they cannot be read either, so no engine could use the model.
    """
    from transformers import GenerationConfig

    settings: Any = GenerationConfig
    try:
        settings.from_pretrained(files).validate(strict=True)
    except ValueError as error:
        reason = library_words(error)
        return [f"{name}: {GENERATION} is copied into models as it is; transformers would not save it ({reason})"]
    except OSError:
        return []  # there is none, or none that anybody can read
    except Exception as error:  # a value of another type than the library expects
        raise UserError(f"{name}: {GENERATION} cannot be used: {library_words(error)}; correct or remove it") from error
    return []
