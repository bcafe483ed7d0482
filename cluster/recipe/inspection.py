"""`qwenlong data inspect`: a data set measured with the tokenizer and the phases of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.model_folder import folder_or_hub_id
from actors.prompt import ChatPrompt, load_tokenizer
from cluster.recipe.load import load_recipe
from cluster.recipe.trust import check_trust
from cluster.recipe.truths import SourceTruths, truths_by_source
from curriculum.dataset import Loaded, load_tasks
from curriculum.errors import UserError, shortened
from curriculum.files import check_writable
from curriculum.phase_lengths import PhaseLengths, phase_lengths
from curriculum.printable import printable
from curriculum.rejects import count_reasons, write_rejects
from curriculum.task import Task
from reward.config import RewardConfig

BAR_WIDTH, MAX_SHOWN_CHARS = 40, 40
MAX_EXAMPLES = 3
"""Questions that are named for each data source."""


def inspect_data(
    source: str, recipe: Path, overrides: Sequence[str], rejects: Path | None, *, trust_remote_code: bool = False
) -> None:
    """Print counts, lengths per phase with a histogram, and rejects by reason.

    Raises:
        UserError: the recipe or the data cannot be read, or the rejects cannot be written.
    """
    config = load_recipe(recipe, overrides)
    check_trust(config, remote_code=trust_remote_code)
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
        form=config.data,
    )
    names = [phase.name for phase in config.curriculum.phases]
    _print(found, dict(zip(names, phase_lengths(found.records, limits), strict=True)), config.reward)
    if rejects is not None:
        write_rejects(found.rejects, rejects, name=f"--rejects {rejects}")


def _print(found: Loaded[Task], phases: Mapping[str, PhaseLengths], reward: RewardConfig) -> None:
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    console.print(f"{len(found.records)} tasks, {len(found.rejects)} rows refused")
    console.print(_truth_table(truths_by_source(found.records, reward)))
    console.print(_length_table(phases))
    for name, phase in phases.items():
        _print_histogram(console, phase, name)
    if found.rejects:
        _print_counts(console, "refused because", count_reasons(found.rejects))


def _truth_table(sources: Sequence[SourceTruths]) -> Table:
    """Show kind and number of questions of each data source, and those that only a judge can reward."""
    table = Table("data source", "kind", "questions", "for the judge only", "such as")
    for source in sources:
        examples = ", ".join(
            f"{task.task_id}: {shortened(repr(task.answers[0]), MAX_SHOWN_CHARS)}"
            for task in source.unpayable[:MAX_EXAMPLES]
        )
        counts = (str(source.num_tasks), str(len(source.unpayable)))
        table.add_row(Text(printable(source.data_source)), str(source.kind), *counts, Text(printable(examples)))
    return table


def _print_counts(console: Console, title: str, counts: Mapping[str, int]) -> None:
    table = Table(title, "rows")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(Text(printable(name)), str(count))
    console.print(table)


def _length_table(phases: Mapping[str, PhaseLengths]) -> Table:
    table = Table("phase", "prompt tokens", "tasks", "min", "median", "mean", "max")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, phase in phases.items():
        numbers = [phase.min, phase.median, phase.mean, phase.max]
        shown = ["-" if number is None else f"{number:.0f}" for number in numbers]
        table.add_row(
            Text(printable(name)), f"{phase.above_tokens + 1} to {phase.max_tokens}", str(phase.num_tasks), *shown
        )
    return table


def _print_histogram(console: Console, phase: PhaseLengths, name: str) -> None:
    if not phase.num_tasks:
        return
    console.print(f"{printable(name)}: prompt lengths in tokens", markup=False)
    highest = max(phase.bin_counts)
    for edge, count in zip(phase.bin_edges[1:], phase.bin_counts, strict=True):
        console.print(
            f"  to {edge:>8.0f}  {'█' * round(BAR_WIDTH * count / highest):<{BAR_WIDTH}} {count}", markup=False
        )
