"""`qwenlong data inspect`: a data set measured with the tokenizer and the phases of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.model_folder import folder_or_hub_id
from actors.prompt import ChatPrompt, load_tokenizer
from cluster.recipe.load import load_recipe
from curriculum.dataset import Loaded, load_tasks
from curriculum.errors import UserError
from curriculum.files import check_writable
from curriculum.phase_lengths import PhaseLengths, phase_lengths
from curriculum.rejects import count_reasons, write_rejects
from curriculum.task import Task

BAR_WIDTH = 40


def inspect_data(source: str, recipe: Path, overrides: Sequence[str], rejects: Path | None) -> None:
    """Print counts, lengths per phase with a histogram, and rejects by reason.

    Raises:
        UserError: the recipe or the data cannot be read, or the rejects cannot be written.
    """
    config = load_recipe(recipe, overrides)
    if rejects is not None:
        check_writable(rejects, name=f"--rejects {rejects}")
    limits = [phase.max_prompt_tokens for phase in config.curriculum.phases]
    if not limits:
        raise UserError(f"recipe {recipe}: it has no curriculum.phases to measure the data by; use another recipe")
    model_path = folder_or_hub_id(config.model.path, key="model.path")
    tokenizer = load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code)
    found = load_tasks(
        source,
        encoder=ChatPrompt(tokenizer),
        phase_limits=limits,
        over_long=config.data.over_long,
        key="FILE",
        every_phase=False,
    )
    names = [phase.name for phase in config.curriculum.phases]
    _print(found, dict(zip(names, phase_lengths(found.records, limits), strict=True)))
    if rejects is not None:
        write_rejects(found.rejects, rejects, name=f"--rejects {rejects}")


def _print(found: Loaded[Task], phases: Mapping[str, PhaseLengths]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(found.records)} tasks, {len(found.rejects)} rows refused")
    _print_counts(console, "data source", dict(Counter(task.data_source for task in found.records).most_common()))
    console.print(_length_table(phases))
    for name, phase in phases.items():
        _print_histogram(console, phase, name)
    if found.rejects:
        _print_counts(console, "refused because", count_reasons(found.rejects))


def _print_counts(console: Console, title: str, counts: Mapping[str, int]) -> None:
    table = Table(title, "rows")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, str(count))
    console.print(table)


def _length_table(phases: Mapping[str, PhaseLengths]) -> Table:
    table = Table("phase", "prompt tokens", "tasks", "min", "median", "mean", "max")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, phase in phases.items():
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
