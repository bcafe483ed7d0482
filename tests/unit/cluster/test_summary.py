"""summary.json: plain JSON that says per stage what it came to."""

from __future__ import annotations

import json

from cluster.batches.ledger import Ledger
from cluster.recipe.config import RunConfig
from cluster.run.heldout_statistics import Evaluation
from cluster.run.progress import Progress, StageProgress
from cluster.run.summary import summarise
from curriculum.leases import LeaseCounts
from tests.harness.heldout import a_cell

CONFIG = RunConfig.model_validate(
    {"name": "tiny", "seed": 5, "model": {"path": "a/b"}, "data": {"train": "t.parquet", "sft": "s.parquet"}}
)


def evaluation(accuracy):
    cell = a_cell(accuracy, low=accuracy - 0.25, high=accuracy + 0.25)
    cells = {"heldout/accuracy": cell, "heldout/accuracy/long": cell, "heldout/accuracy/source:a": cell}
    return Evaluation(step=4, num_samples=1, metrics={"heldout/accuracy": accuracy}, cells=cells)


def test_the_summary_tells_each_stage_with_its_replayed_share():
    stage = StageProgress(
        name="long",
        kind="rl",
        steps=4,
        wall_seconds=2.5,
        heldout=evaluation(0.5),
        groups_sampled=8,
        groups_replayed=2,
        judge_calls=3,
        end_reason="steps",
    )
    progress = Progress(step=4, policy_version=5, finished_stages=[stage], base_heldout=evaluation(0.25))
    progress.ledger = Ledger(trained=7, no_variance=1)
    summary = json.loads(json.dumps(summarise(CONFIG, progress, LeaseCounts(opened=8, reported=8))))
    assert {key: summary[key] for key in ("name", "seed", "steps", "policy_version", "base_accuracy")} == {
        "name": "tiny",
        "seed": 5,
        "steps": 4,
        "policy_version": 5,
        "base_accuracy": {"long": 0.25},
    }
    (told,) = summary["stages"]
    assert told["replayed_share"] == 0.25
    assert (told["steps"], told["wall_seconds"], told["judge_calls"], told["end_reason"]) == (4, 2.5, 3, "steps")
    assert told["heldout"]["metrics"] == {"heldout/accuracy": 0.5}
    assert told["heldout"]["cells"]["heldout/accuracy/long"] == {
        "num_questions": 4, "accuracy": 0.5, "low": 0.25, "high": 0.75, "pass_at": {}, "rule": 0.5, "judge_saved": 0.0,
        "unknown": 0.0,
    }  # fmt: skip
    assert (told["accuracy_before"], told["accuracy_after"]) == ({"long": 0.25}, {"long": 0.5})
    assert (summary["leases"]["opened"], summary["leases"]["expired"]) == (8, 0)
    assert (summary["ledger"]["trained"], summary["ledger"]["no_variance"]) == (7, 1)
    assert summary["ledger"]["imbalance"] is None


def test_a_run_without_reinforcement_learning_has_no_leases():
    summary = summarise(CONFIG, Progress(), None)
    assert summary["leases"] is summary["ledger"] is None
