"""Weights & Biases without a key stays on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from cluster.run.tracking import WandbTracker


def test_without_a_key_the_curves_stay_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "my-run"
    run.mkdir()
    tracker = WandbTracker(name="my-run", directory=run, recipe={"seed": 1}, say=print)
    tracker.log(0, {"learner/loss": 0.5})
    tracker.finish()
    (offline,) = (run / "wandb").glob("offline-run-*-my-run")
    assert (offline / "run-my-run.wandb").stat().st_size > 0


PROGRAM = """
import os, signal, sys
from pathlib import Path
import psutil
from cluster.run.tracking import WandbTracker
folder = Path(sys.argv[1]) / "my-run"
folder.mkdir()
tracker = WandbTracker(name="my-run", directory=folder, recipe={}, say=print)
(service,) = psutil.Process().children()
"""


def run(program, folder):
    """Lines of a program with a tracker and its service; it must end by itself and without a traceback."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(program), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_a_wandb_that_dies_is_one_line_and_ends_nothing(tmp_path):
    (line,) = run(
        """
        service.terminate()  # as `ray job stop` does
        service.wait(20)
        for step in range(20):
            tracker.log(step, {"learner/loss": 0.5})
        tracker.finish()
        """,
        tmp_path,
    )
    assert line.startswith("tracking.wandb: ")
    assert "the curves are in metrics.jsonl" in line


def test_a_wandb_that_hangs_does_not_hold_up_the_end(tmp_path):
    lines = run(
        """
        tracker.log(0, {"learner/loss": 0.5})
        service.suspend()
        tracker.finish(within_s=0.5)
        print(service.is_running() and service.status() != psutil.STATUS_ZOMBIE)
        """,
        tmp_path,
    )
    assert lines[0].startswith("tracking.wandb: not everything was sent within 0.5 s")
    assert lines[1:] == ["False"]
