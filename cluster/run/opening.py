"""What `qwenlong train` works on: the recipe and the folder, from the arguments of the command."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cluster.recipe.changes import changes
from cluster.recipe.config import RunConfig
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.run.folder import RunFolder
from curriculum.errors import UserError
from curriculum.files import file_errors, write_text


def open_run(arguments: Sequence[str], *, run_dir: Path | None, resume: Path | None) -> tuple[RunConfig, Path]:
    """Return the recipe of a run and its folder.

    Args:
        arguments: the path of a recipe, then `key=value` overrides. With `resume` both may be left out; overrides alone
            change the recipe of the run.
        run_dir: new folder; None names one after the recipe.
        resume: folder of an earlier run.

    Raises:
        UserError: the recipe cannot be read or is missing, there is no such run, or both folders are given.
    """
    recipe, overrides = _split(arguments)
    if resume is None:
        if recipe is None:
            raise UserError("RECIPE is missing; for example: qwenlong train recipes/local.yaml")
        config = load_recipe(recipe, overrides)
        return config, run_dir or _default_run_dir(config.name)
    if run_dir is not None:
        raise UserError(f"--run-dir {run_dir}: not with --resume, which goes on in its own folder; leave it out")
    return load_recipe(recipe or RunFolder.open(resume).recipe, overrides), resume


def check_demonstrations(folder: RunFolder, num_refused: int, *, allowed: Collection[str]) -> None:
    """Check that a resumed run has the demonstrations of the run.

    Those beyond `learner.max_tokens_per_microbatch` are refused, and what batches hold depends on all that are left.

    Args:
        folder: of the run, with the rows that were refused.
        num_refused: rows that are refused now.
        allowed: keys that may change.

    Raises:
        UserError: other rows are refused than before, and `data.sft` may not change.
    """
    listed = folder.rejects("data.sft")
    with file_errors(listed, "read"):
        before = listed.read_bytes().count(b"\n") if listed.exists() else 0
    if before != num_refused and "data.sft" not in allowed:
        raise UserError(
            f"--resume {folder.path}: {num_refused} rows of data.sft are refused instead of {before}, so batches of "
            "the warm-up would differ; set learner.max_tokens_per_microbatch back, or add --allow-change data.sft"
        )


def record_changes(folder: RunFolder, config: RunConfig, say: Callable[[str], None]) -> None:
    """Print and record what a resumed run changes in its recipe, key by key, and write the new one into its folder."""
    found = changes(load_recipe(folder.recipe), config)
    if not found:
        return
    for change in found:
        say(f"changed: {change}")
    folder.append_event("recipe_changed", changes={change.key: [change.old, change.new] for change in found})
    write_text(folder.recipe, dump_recipe(config))


def _split(arguments: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """Return (recipe, overrides): the recipe comes first and has no '='."""
    if arguments and "=" not in arguments[0]:
        return Path(arguments[0]), arguments[1:]
    return None, arguments


def _default_run_dir(name: str) -> Path:
    """Return runs/NAME-TIME here; in a submitted job, whose directory Ray deletes, one under the home directory."""
    inside_job = "working_dir_files" in Path.cwd().parts
    root = Path.home() / "qwenlong-runs" if inside_job else Path("runs")
    return root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
