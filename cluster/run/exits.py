"""How a command ends: every error in one line, and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import typer

from cluster.run.fault_log import write_fault_log
from curriculum.errors import UserError, one_line, root_cause
from curriculum.printable import printable

EXIT_BAD_ROWS, EXIT_FAULT, EXIT_INTERRUPTED = 2, 70, 130
"""Exit statuses besides those of `UserError` and its subclasses; docs/operations.md has the table."""


def say(text: str) -> None:
    """Print one line on standard error, with nothing in it that a terminal obeys."""
    sys.stderr.write(printable(text) + "\n")


@contextmanager
def one_line_errors() -> Generator[Callable[[Path], None]]:
    """Print every error of a block in one line, and end the command with its exit status.

    Yields:
        a function that takes the run folder; a traceback of a fault of the program is then written to its logs/.
    """
    run_folder: Path | None = None

    def log_into(folder: Path) -> None:
        nonlocal run_folder
        run_folder = folder

    try:
        yield log_into
    except UserError as error:
        raise typer.Exit(_print(error)) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        raise  # standard output is closed; typer ends without a message
    except Exception as error:
        log = write_fault_log(error, run_folder)
        say(f"error: {one_line(error)}; this is a fault of the program: please report it together with {log}")
        raise typer.Exit(EXIT_FAULT) from None


def _print(error: UserError) -> int:
    """Print the lines of an error, also of one raised in an actor; return its exit status."""
    prefix = "" if error.exit_status == EXIT_INTERRUPTED else "error: "
    cause = root_cause(error)
    for line in cause.lines if isinstance(cause, UserError) else (one_line(cause),):
        say(prefix + line)
    return error.exit_status
