"""What a person sees while a run goes on: a bar for each stage and one line per step."""

from __future__ import annotations

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.run.progress import Accuracy
from cluster.run.progress import Progress as RunProgress
from curriculum.metric import Metrics

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
        self._console = RichConsole(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._bar: TaskID | None = None

    def say(self, text: str) -> None:
        """One line; markup in it is printed as it is."""
        self._console.print(text, markup=False)

    def open_stage(self, name: str) -> None:
        """Starts the bar of a stage."""
        self.say(f"── {name}")
        self._bars.start()
        self._bar = self._bars.add_task(name, total=None)

    def step(self, stage: str, step: int, total: int | None, metrics: Metrics) -> None:
        """One line for one step; the bar of a stage that a resumed run is in the middle of starts here."""
        if self._bar is None:
            self.open_stage(stage)
        if self._bar is not None:
            self._bars.update(self._bar, completed=step + 1, total=total)
        values = [f"{label} {metrics[key]:{form}}" for label, key, form in LINE if key in metrics]
        self.say(f"{stage} {step + 1}{f'/{total}' if total else ''}  " + "  ".join(values))

    def close_stage(self) -> None:
        """Ends the bar of a stage."""
        self._bars.stop()
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def summary(self, progress: RunProgress) -> None:
        """The table at the end of a run, on standard output."""
        lengths = list((progress.base_accuracy or {}).keys())
        table = Table(title="held-out accuracy before → after each stage")
        for column in ("stage", "steps", "seconds", *lengths, "replayed", "judge calls", "saved", "ended by"):
            table.add_column(column, justify="left" if column in ("stage", "ended by") else "right")
        for stage in progress.finished_stages:
            accuracies = [_change(stage.accuracy_before, stage.accuracy_after, name) for name in lengths]
            table.add_row(
                stage.name,
                str(stage.steps),
                f"{stage.wall_seconds:.0f}",
                *accuracies,
                f"{stage.replayed_share:.2f}",
                str(stage.judge_calls),
                str(stage.judge_saves),
                stage.end_reason or "",
            )
        RichConsole(highlight=False, width=None if self._console.is_terminal else 120).print(table)


def _change(before: Accuracy | None, after: Accuracy | None, name: str) -> str:
    if not after or name not in after:
        return "-"
    return f"{before[name]:.3f} → {after[name]:.3f}" if before and name in before else f"{after[name]:.3f}"
