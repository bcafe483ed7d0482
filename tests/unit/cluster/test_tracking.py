"""Weights & Biases without a key stays on this machine."""

from __future__ import annotations

import pytest

from cluster.run.tracking import WandbTracker


def test_without_a_key_the_curves_stay_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "my-run"
    run.mkdir()
    tracker = WandbTracker(name="my-run", directory=run, recipe={"seed": 1}, say=pytest.fail)
    tracker.log(0, {"learner/loss": 0.5})
    tracker.finish()
    (offline,) = (run / "wandb").glob("offline-run-*-my-run")
    assert (offline / "run-my-run.wandb").stat().st_size > 0


class BrokenRun:
    def log(self, metrics, step):
        raise OSError(28, "No space left on device")

    finish = log


def test_curves_that_cannot_be_written_are_told_once_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **options: BrokenRun())
    said = []
    tracker = WandbTracker(name="my-run", directory=tmp_path, recipe={}, say=said.append)
    for step in range(3):
        tracker.log(step, {"learner/loss": 0.5})
    tracker.finish()
    why = "wandb: OSError: [Errno 28] No space left on device"
    assert said == [f"{why}; the run goes on without it, metrics.jsonl has all curves"]
