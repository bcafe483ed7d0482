"""Weights & Biases without a key stays on this machine."""

from __future__ import annotations

from cluster.run.tracking import WandbTracker


def test_without_a_key_the_curves_stay_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "my-run"
    run.mkdir()
    tracker = WandbTracker(name="my-run", directory=run, recipe={"seed": 1})
    tracker.log(0, {"learner/loss": 0.5})
    tracker.finish()
    (offline,) = (run / "wandb").glob("offline-run-*-my-run")
    assert (offline / "run-my-run.wandb").stat().st_size > 0
