"""Every command ends with one line and a status, whatever is raised inside it."""

import sys

import pytest
import typer
from ray.exceptions import RayTaskError
from typer.testing import CliRunner

from cluster.cli import one_line_errors
from cluster.processes.supervision import ActorLost
from cluster.run.stopping import Interrupted
from curriculum.errors import UserError


@pytest.fixture
def end_with(tmp_path, monkeypatch):
    """Runs a command that raises; returns (exit status, lines on standard error)."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def _end_with(error, *, run_folder=None):
        app = typer.Typer()

        @app.command()
        def command():
            with one_line_errors() as log_into:
                if run_folder is not None:
                    log_into(run_folder)
                raise error

        result = CliRunner().invoke(app, [])
        assert result.stdout == ""
        return result.exit_code, result.stderr.splitlines()

    return _end_with


def in_an_actor(error):
    text = f"Traceback ...\n  File ...\n{type(error).__name__}: {error}"
    return RayTaskError("method", text, error).as_instanceof_cause()


@pytest.mark.parametrize("where", [lambda error: error, in_an_actor], ids=["here", "in an actor"])
@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (UserError("seed=-1: no; give 0"), 2, ["error: seed=-1: no; give 0"]),
        (UserError("a=1: no", "b=2: no"), 2, ["error: a=1: no", "error: b=2: no"]),
        (ActorLost("judge-0 is gone"), 1, ["error: judge-0 is gone"]),
        (Interrupted(), 130, ["stopped; go on with --resume and the run folder"]),
    ],
)
def test_what_a_person_can_put_right_is_told_in_its_own_lines(end_with, where, error, status, lines):
    assert end_with(where(error)) == (status, lines)


def test_a_key_press_ends_with_130(end_with):
    assert end_with(KeyboardInterrupt()) == (130, ["interrupted"])


def log_of(line):
    """Path that the line of a fault names."""
    start = (
        "error: ZeroDivisionError: division by zero; this is a fault of the program: please report it together with "
    )
    assert line.startswith(start)
    return line.removeprefix(start)


def test_a_fault_of_the_program_is_one_line_that_names_a_log_with_the_traceback(end_with, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwenlong", "train", "my recipe.yaml"])
    status, (line,) = end_with(ZeroDivisionError("division by zero"))
    assert status == 70
    (log,) = (tmp_path / "temporary").rglob("*.log")
    assert log_of(line) == str(log)
    assert log.read_text().startswith("qwenlong train 'my recipe.yaml'\n\nTraceback (most recent call last):")
    assert log.read_text().endswith("ZeroDivisionError: division by zero\n")


def test_the_log_of_a_fault_in_an_actor_holds_the_traceback_of_the_actor(end_with, tmp_path):
    status, (line,) = end_with(in_an_actor(ZeroDivisionError("division by zero")))
    assert status == 70
    with open(log_of(line)) as log:
        assert "  File ...\nZeroDivisionError: division by zero" in log.read()


def test_with_a_run_folder_the_log_is_in_it(end_with, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    _, (line,) = end_with(ZeroDivisionError("division by zero"), run_folder=run)
    (log,) = (run / "logs").iterdir()
    assert log_of(line) == str(log)


@pytest.mark.parametrize("kind", ["not made yet", "something else", "logs is a file"])
def test_a_folder_that_cannot_take_the_log_leaves_it_to_a_temporary_file(end_with, tmp_path, kind):
    run = tmp_path / "run"
    if kind != "not made yet":
        run.mkdir()
    if kind == "logs is a file":
        (run / "recipe.yaml").touch()
        (run / "logs").touch()
    _, (line,) = end_with(ZeroDivisionError("division by zero"), run_folder=run)
    assert log_of(line).startswith(str(tmp_path / "temporary"))


def test_a_reader_that_goes_away_is_no_fault(end_with, tmp_path):
    assert end_with(BrokenPipeError(32, "Broken pipe")) == (1, [])
    assert list((tmp_path / "temporary").iterdir()) == []
