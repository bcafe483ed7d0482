"""`qwenlong export`: the model of any checkpoint as a Hugging Face folder, on this machine or on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.load import load_recipe
from cluster.recipe.trust import check_remote_code
from cluster.run.checkpoints import Checkpoint
from cluster.run.folder import RunFolder
from cluster.run.model_card import model_card
from cluster.run.models import export_model
from cluster.run.push import Hub
from curriculum.errors import UserError
from curriculum.files import file_errors, private_files
from curriculum.seal import Damaged

_STEP = re.compile(r"step-(\d{6,})")


@private_files()
def run_export(
    source: Path, out: Path, *, push: str | None, private: bool, trust_remote_code: bool, say: Callable[[str], None]
) -> None:
    """Write a model, and upload it.

    Args:
        source: a checkpoint in its run folder, or a run folder, of which the newest whole one is taken.
        out: a new or empty folder.
        push: name on the hub, owner/name; None keeps it here.
        private: whether a repository that is made for it is private.
        trust_remote_code: whether the user lets code run that comes with the model.
        say: prints a line.

    Raises:
        UserError: something cannot be used, read or written, or the hub refuses.
        RunFailed: the hub cannot be reached.
    """
    folder, step = _located(source)
    config = load_recipe(folder.recipe)
    check_remote_code(config, trusted=trust_remote_code)
    _check_new(out)
    hub = None if push is None else Hub(push, private=private)  # refused before hours of reading
    checkpoint = _whole(folder, step, source, say)
    _check_files(folder, config)
    card = model_card(config, checkpoint, run=folder.path.name, files=folder.model_files)
    export_model(checkpoint, out, card, lambda: None, folder=folder, config=config)
    say(f"model:   {out}")
    if hub is not None:
        say(f"on the hub: {hub.upload(out)}")


def _located(source: Path) -> tuple[RunFolder, int | None]:
    """Return the run folder, and the step of the checkpoint if one is named."""
    with file_errors(source, "read"):
        path = source.resolve()
        step = _STEP.fullmatch(path.name)
        run = path.parents[1] if step and len(path.parents) > 1 else path
        if not path.exists():
            raise UserError(f"{source}: does not exist; give RUN/checkpoints/step-N, or the folder of a run")
        if not (run / "recipe.yaml").is_file():
            raise UserError(
                f"{source}: is no checkpoint of a run (no {run / 'recipe.yaml'}); give RUN/checkpoints/step-N"
            )
    return RunFolder(run), int(step[1]) if step else None


def _check_new(out: Path) -> None:
    with file_errors(out, "written"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is there already and not empty; give a new folder")


def _whole(folder: RunFolder, step: int | None, source: Path, say: Callable[[str], None]) -> Checkpoint:
    if step is not None:
        try:
            return folder.checkpoints.at(step, prove=True, say=say)
        except Damaged as error:
            raise UserError(f"{source}: is damaged: {error}; export another checkpoint") from error
    checkpoint = folder.checkpoints.choose(say)
    if checkpoint is None:
        raise UserError(f"{source}: has no checkpoint yet; wait for the first one")
    return checkpoint


def _check_files(folder: RunFolder, config: RunConfig) -> None:
    if not folder.model_files.is_dir():
        raise UserError(
            f"{folder.model_files}: is missing, which has configuration and tokenizer of {config.model.path!r}; bring "
            "it back from a copy, or let a --resume of the run write it again"
        )
