"""A run under guards that are always met: it warns, skips updates, goes back three times, and stops in one line."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS = 24  # as in conftest.py
GUARDS = [
    {"metric": "sft/loss", "above": 0, "steps": 8},
    {"metric": "rollout/prompt_tokens_mean", "above": 95, "action": "skip"},
    {"metric": "sync/version", "above": 2, "action": "roll_back"},
]
"""The warm-up ends with version 1. The first step makes 2, the second 3, which is one too many. Then the long
phase begins, where every update is left out, and the version grows with every time that the learner goes back."""


@pytest.fixture(scope="module")
def run(workshop):
    run = workshop.new_run("guarded")
    command = workshop.train(
        run, guards=GUARDS, checkpoint__every_steps=1, checkpoint__keep__last=1, rollout__sync__probe_every=1
    )
    run.finish(command)
    return run


def test_the_run_stops_in_one_line_that_names_guard_value_and_good_checkpoint(run):
    assert run.exit_statuses == [1], run.output[-4000:]
    assert run.survivors == [[]]
    (line,) = [line for line in run.output.splitlines() if line.startswith("error:")]
    assert "guard: sync/version is 6, above 2, in one step, and the run has gone back 3 times; go on from" in line
    assert f"--resume RUN_FOLDER --step {NUM_SFT_STEPS + 4} --allow-change KEY)" in line


def test_every_guard_says_what_it_found_and_what_it_does(run):
    told = [(event["step"], event["metric"], event["action"]) for event in run.events("guard")]
    first = NUM_SFT_STEPS
    assert told == [
        (7, "sft/loss", "warn"),
        (15, "sft/loss", "warn"),
        (first + 1, "sync/version", "roll_back"),
        (first + 2, "rollout/prompt_tokens_mean", "skip"),
        (first + 2, "sync/version", "roll_back"),
        (first + 3, "rollout/prompt_tokens_mean", "skip"),
        (first + 3, "sync/version", "roll_back"),
        (first + 4, "rollout/prompt_tokens_mean", "skip"),
        (first + 4, "sync/version", "roll_back"),
    ]


def test_the_learner_goes_back_and_the_engines_hold_and_compute_what_it_went_back_to(run):
    rolled_back = [(event["step"], event["checkpoint"]) for event in run.events("rolled_back")]
    first = NUM_SFT_STEPS
    assert rolled_back == [(first + 2, first), (first + 3, first + 2), (first + 4, first + 3)], (
        "first to the end of the warm-up: only the step that shows it bad has seen the weights of the first step"
    )
    syncs = run.events("sync")
    assert [event["version"] for event in syncs] == [1, 2, 3, 4, 5, 6]
    assert max(event["probe_gap_max"] for event in syncs) < 1e-3


def groups_with_signal(run, step):
    """Groups of a step whose answers have different rewards."""
    rewards = {}
    for row in pq.read_table(run.folder / "trajectories" / f"step-{step:06d}.parquet").to_pylist():
        rewards.setdefault(row["lease_id"], set()).add(row["reward"])
    return sum(len(values) > 1 for values in rewards.values())


def test_what_was_left_out_is_booked_as_skipped(run):
    last, left_out = run.metrics[-1], range(NUM_SFT_STEPS + 2, NUM_SFT_STEPS + 5)
    assert last["ledger/trained"] == 2 * 4
    assert last["ledger/skipped"] == sum(min(4, groups_with_signal(run, step)) for step in left_out) > 0
    assert [line["rollout/groups_trained"] for line in run.metrics[NUM_SFT_STEPS:]] == [4, 4, 0, 0, 0]
