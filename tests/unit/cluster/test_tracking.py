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


def test_a_wandb_that_dies_is_one_line_and_ends_nothing(tmp_path):
    program = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        import psutil
        from cluster.run.tracking import WandbTracker
        folder = Path({str(tmp_path)!r}) / "my-run"
        folder.mkdir()
        tracker = WandbTracker(name="my-run", directory=folder, recipe={{}}, say=print)
        services = psutil.Process().children(recursive=True)
        for service in services:
            service.send_signal(signal.SIGTERM)  # as `ray job stop` does
        psutil.wait_procs(services[:1], timeout=20)
        for step in range(20):
            tracker.log(step, {{"learner/loss": 0.5}})
        tracker.finish()
    """)
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("tracking.wandb: ")
    assert "the curves are in metrics.jsonl" in line
