"""The command line: `qwenlong check`, `qwenlong data inspect`, `qwenlong train`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="qwenlong",
    help="Teach a language model to reason over long documents: warm-up SFT, curriculum-guided phased RL with growing "
    "context, and replay of hard samples (QwenLong-L1), on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, for example recipes/local.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example learner.learning_rate=1e-6 seed=3."),
]


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe: resolve it, read its model and data, and print what a run would do. Starts no process.

    Exit status 0: the recipe can be run. 2: it cannot; every fault is one line with key, value and way out.
    """
    with _errors():
        from cluster.preparation import prepare
        from cluster.recipe import dump_recipe, load_recipe

        config = load_recipe(recipe, overrides or ())
        prepared = prepare(config)
        sys.stdout.write(dump_recipe(config))
        batches = 0 if prepared.demonstrations is None else len(prepared.demonstrations)
        _say(f"ok: warm-up of {batches} steps, {len(prepared.tasks)} tasks in {len(config.curriculum.phases)} phases")
        for key, rejects in prepared.rejects.items():
            if rejects:
                _say(f"{key}: {len(rejects)} rows refused; see them with: qwenlong data inspect FILE --recipe {recipe}")


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A YAML recipe and overrides. With --resume the recipe of the run is used and may be left out.",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder of the run. Default: runs/NAME-DATE-TIME.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of an earlier run, to go on from its last checkpoint.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the summary.")] = False,
) -> None:
    """Train from a recipe.

    Joins the Ray that RAY_ADDRESS names (as inside `ray job submit`) or that runs on this machine, and starts one
    otherwise. Ctrl-C saves a checkpoint and stops; `--resume` goes on from it. The run folder holds recipe.yaml,
    metrics.jsonl, events.jsonl, trajectories/, checkpoints/, model/, summary.json and logs/.

    Exit status 0: finished. 1: failed; resume when the cause is mended. 2: recipe, data or folder cannot be used.
    130: stopped by a signal after saving a checkpoint.
    """
    with _errors():
        from cluster.console import Console
        from cluster.train import train as run

        recipe, overrides = _split(arguments or [])
        config = _resumed_recipe(resume, recipe, overrides) if resume else _fresh_recipe(recipe, overrides)
        if resume and run_dir:
            raise ValueError(f"--run-dir {run_dir}: not with --resume, which goes on in its own folder")
        run(config, run_dir=resume or run_dir or _default_run_dir(config.name), resume=resume is not None,
            console=Console(quiet=quiet))  # fmt: skip


@data_app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="Parquet or JSONL file, or a hub id (owner/name[:split]).")
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe whose tokenizer and phases measure the data.")],
    rejects: Annotated[
        Path | None, typer.Option(help="Write the refused rows with their reasons to this JSONL file.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Count the rows of a data set, measure them with the model's tokenizer, and show lengths per phase and rejects."""
    with _errors():
        from cluster.inspection import inspect_data

        inspect_data(source, recipe, overrides or (), rejects)


def main() -> None:
    """Entry point of the command `qwenlong`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


def _split(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """(recipe, overrides): the recipe comes first and has no '='."""
    if arguments and "=" not in arguments[0]:
        return Path(arguments[0]), arguments[1:]
    return None, arguments


def _fresh_recipe(recipe: Path | None, overrides: list[str]) -> Any:
    from cluster.recipe import load_recipe

    if recipe is None:
        raise ValueError("RECIPE is missing; for example: qwenlong train recipes/local.yaml")
    return load_recipe(recipe, overrides)


def _resumed_recipe(folder: Path, recipe: Path | None, overrides: list[str]) -> Any:
    """The recipe stored with the run; one that is given as well must be the same."""
    from cluster.recipe import differing_keys, load_recipe
    from cluster.run_folder import RunFolder

    stored = load_recipe(RunFolder.open(folder).recipe)
    given = load_recipe(recipe or folder / "recipe.yaml", overrides)
    different = differing_keys(stored, given)
    if different:
        raise ValueError(
            f"--resume {folder}: the recipe differs from that of the run in {', '.join(different)}; "
            "leave recipe and overrides out, or start a new run with --run-dir"
        )
    return stored


def _default_run_dir(name: str) -> Path:
    """runs/NAME-TIME here; inside a submitted job, whose directory Ray deletes, under the home directory."""
    inside_job = "working_dir_files" in Path.cwd().parts
    root = Path.home() / "qwenlong-runs" if inside_job else Path("runs")
    return root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@contextmanager
def _errors() -> Iterator[None]:
    """Expected failures become one line each and an exit status; anything else is a defect and keeps its traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        _fail(error, EXIT_USAGE)
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except RuntimeError as error:
        if not _is_expected(error):
            raise
        _fail(error, EXIT_FAILED)
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
        _say("stopped; go on with --resume and the run folder")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _fail(error: BaseException, status: int) -> None:
    for line in str(error).splitlines() or [type(error).__name__]:
        _say(f"error: {line}")
    raise typer.Exit(status) from None


def _is_expected(error: RuntimeError) -> bool:
    from cluster.launch import ActorLost, LaunchError
    from cluster.placement import PlacementError
    from cluster.weight_sync import WeightSyncError

    return isinstance(error, ActorLost | LaunchError | PlacementError | WeightSyncError)


if __name__ == "__main__":
    main()
