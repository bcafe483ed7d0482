"""What a run prints: a progress bar for each stage and one line for each step."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cluster.run.heldout_statistics import ACCURACY, Cell, Evaluation
from cluster.run.progress import Progress as RunProgress
from curriculum.controls import CONTROLS, Control
from curriculum.metric import Metrics
from curriculum.printable import printable

LINE = (
    ("loss", "sft/loss", ".3f"),
    ("token acc", "sft/token_accuracy", ".3f"),
    ("acc", "reward/accuracy", ".3f"),
    ("loss", "learner/loss", "+.4f"),
    ("grad", "learner/grad_norm", ".2f"),
    ("entropy", "learner/entropy", ".3f"),
    ("trained", "rollout/groups_trained", ".0f"),
    ("replayed", "curriculum/replayed_share", ".2f"),
    ("judge", "reward/judge_calls", ".0f"),
    ("saved", "reward/judge_saves", ".0f"),
    ("s", "time/step_s", ".2f"),
)
"""(label, metric, format) of the line that a step prints; absent metrics are left out."""


class Console:
    """Prints to standard error, so that standard output stays free for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = RichConsole(stderr=True, quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._bar: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line; markup and control characters in it are shown, not obeyed."""
        self._console.print(printable(text), markup=False)

    def open_stage(self, name: str) -> None:
        """Start the bar of a stage."""
        self.say(f"── {name}")
        self._bars.start()
        self._bar = self._bars.add_task(printable(name), total=None)

    def step(self, stage: str, step: int, total: int | None, metrics: Metrics) -> None:
        """Print the line of a step; open the bar of a stage that a resumed run continues."""
        if self._bar is None:
            self.open_stage(stage)
        if self._bar is not None:
            self._bars.update(self._bar, completed=step + 1, total=total)
        values = [f"{label} {metrics[key]:{form}}" for label, key, form in LINE if key in metrics]
        self.say(f"{stage} {step + 1}{f'/{total}' if total else ''}  " + "  ".join(values))

    def close_stage(self) -> None:
        """End the bar of a stage."""
        self._bars.stop()
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def summary(self, progress: RunProgress) -> None:
        """Print the tables at the end of a run, on standard output."""
        console = RichConsole(highlight=False, emoji=False, width=None if self._console.is_terminal else 120)
        console.print(_stages(progress))
        if progress.base_heldout:
            console.print(_heldout(progress, progress.base_heldout))


def _stages(progress: RunProgress) -> Table:
    lengths = list(progress.base_heldout.phases) if progress.base_heldout else []
    table = _table(
        "held-out accuracy before → after each stage",
        ("stage", "steps", "seconds", *lengths, "replayed", "judge calls", "saved", "ended by"),
    )
    for stage, (_, before, after) in zip(progress.finished_stages, progress.measured, strict=True):
        table.add_row(
            Text(printable(stage.name)),
            str(stage.steps),
            f"{stage.wall_seconds:.0f}",
            *[_change(before, after, name) for name in lengths],
            f"{stage.replayed_share:.2f}",
            str(stage.judge_calls),
            str(stage.judge_saves),
            stage.end_reason or "",
        )
    return table


def _heldout(progress: RunProgress, base: Evaluation) -> Table:
    """Return the table of the evaluations before the training and after the stages."""
    controls: list[Control] = [control for control in CONTROLS if base.under(control)]
    table = _table(
        f"{base.cells[ACCURACY].num_questions} held-out questions: avg@{base.num_samples} with its 95 % interval, and "
        "what rule and judge found of it",
        ("after", "accuracy", "rule", "judge", "unknown", *[control.replace("_", " ") for control in controls]),
    )
    for name, found in [("base", base), *[(name, after) for name, _, after in progress.measured if after]]:
        table.add_row(
            Text(printable(name)),
            _shown(found.cells[ACCURACY]),
            *[f"{found.metrics[f'heldout/{key}']:.3f}" for key in ("rule", "judge_saved", "unknown")],
            *[_shown(found.under(control)) for control in controls],
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        is_text = column in ("stage", "after", "ended by")
        table.add_column(Text(printable(column)), justify="left" if is_text else "right")
    return table


def _shown(cell: Cell | None) -> Text:
    return Text(str(cell) if cell else "-")


def _change(before: Evaluation | None, after: Evaluation | None, name: str) -> str:
    if after is None or name not in after.phases:
        return "-"
    values = [found.phases[name].accuracy for found in (before, after) if found and name in found.phases]
    return " → ".join(f"{value:.3f}" for value in values)
