"""Progress of a command on standard error: a bar for each stage, and lines."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from curriculum.printable import printable


class Progress:
    """Bars and lines on standard error; standard output stays free for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print one line; markup and control characters in it are shown, not obeyed."""
        self._console.print(printable(text), markup=False)

    @contextmanager
    def stage(self, name: str, *, total: int, done: int) -> Generator[Callable[[], None]]:
        """Show a bar for the length of a block; the function that it yields moves it by one."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                   TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
        with Bars(*columns, console=self._console, disable=self._quiet or not self._console.is_terminal) as bars:
            bar = bars.add_task(name, total=total, completed=done)
            yield lambda: bars.advance(bar)
