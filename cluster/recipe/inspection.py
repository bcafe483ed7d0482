"""`qwenlong data inspect`: a data set as a recipe sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.model_folder import folder_or_hub_id
from actors.prompt import ChatPrompt, load_tokenizer
from cluster.recipe.load import load_recipe
from curriculum.dataset import load_tasks
from curriculum.errors import UserError
from curriculum.rejects import write_rejects
from curriculum.summary import DatasetSummary, PhaseLengths, summarise

BAR_WIDTH = 40


def inspect_data(source: str, recipe: Path, overrides: Sequence[str], rejects: Path | None) -> None:
    """Prints counts, lengths per phase with a histogram, and rejects by reason.

    Raises:
        UserError: the recipe or the data cannot be read, or the rejects cannot be written.
    """
    config = load_recipe(recipe, overrides)
    limits = [phase.max_prompt_tokens for phase in config.curriculum.phases]
    if not limits:
        raise UserError(f"recipe {recipe}: it has no curriculum.phases to measure the data by; use another recipe")
    model_path = folder_or_hub_id(config.model.path, key="model.path")
    tokenizer = load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code)
    task_set = load_tasks(
        source,
        encoder=ChatPrompt(tokenizer),
        phase_limits=limits,
        over_long=config.data.over_long,
        key="FILE",
        every_phase=False,
    )
    _print(summarise(task_set, limits), [phase.name for phase in config.curriculum.phases])
    if rejects is not None:
        write_rejects(task_set.rejects, rejects)


def _print(summary: DatasetSummary, names: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{summary.num_tasks} tasks, {summary.num_rejects} rows refused")
    _print_counts(console, "data source", summary.data_sources)
    console.print(_length_table(summary, names))
    for phase, name in zip(summary.phases, names, strict=True):
        _print_histogram(console, phase, name)
    if summary.rejects:
        _print_counts(console, "refused because", summary.rejects)


def _print_counts(console: Console, title: str, counts: dict[str, int]) -> None:
    table = Table(title, "rows")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, str(count))
    console.print(table)


def _length_table(summary: DatasetSummary, names: Sequence[str]) -> Table:
    table = Table("phase", "prompt tokens", "tasks", "min", "median", "mean", "max")
    for column in table.columns[2:]:
        column.justify = "right"
    for phase, name in zip(summary.phases, names, strict=True):
        numbers = [phase.min, phase.median, phase.mean, phase.max]
        shown = ["-" if number is None else f"{number:.0f}" for number in numbers]
        table.add_row(name, f"{phase.above_tokens + 1} to {phase.max_tokens}", str(phase.num_tasks), *shown)
    return table


def _print_histogram(console: Console, phase: PhaseLengths, name: str) -> None:
    if not phase.num_tasks:
        return
    console.print(f"{name}: prompt lengths in tokens")
    highest = max(phase.bin_counts)
    for edge, count in zip(phase.bin_edges[1:], phase.bin_counts, strict=True):
        console.print(
            f"  to {edge:>8.0f}  {'█' * round(BAR_WIDTH * count / highest):<{BAR_WIDTH}} {count}", markup=False
        )
