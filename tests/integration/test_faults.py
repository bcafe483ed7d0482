"""Kill it, interrupt it, resume it: the numbers are those of an undisturbed run."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_STEPS = 24, 32  # as in conftest.py
STOP_S = 10.0
"""A stop takes no longer than this."""
PAUSE_S = 1.5
"""Into the middle of what a line has announced."""


def test_a_killed_rollout_actor_comes_back_within_the_run(disturbed):
    faults = [(event["actor"], event["action"]) for event in disturbed.events("fault")]
    assert faults == [("rollout-0", "restarting"), ("rollout-0", "back")]


def test_a_killed_rollout_actor_does_not_change_the_numbers(reference, disturbed):
    _assert_same(reference, disturbed, range(NUM_SFT_STEPS, NUM_SFT_STEPS + 2))


def test_a_run_that_gets_two_signals_at_once_saves_its_last_step_and_exits_with_130(disturbed):
    assert disturbed.exit_statuses[0] == 130
    assert disturbed.stop_s[0] < STOP_S
    resumed_from = [event["checkpoint"] for event in disturbed.events("resumed")]
    assert resumed_from == [checkpoints[-1] for checkpoints in disturbed.checkpoints[:2]]


@pytest.mark.parametrize(
    ("moment", "number", "last_line"),
    [
        ("reading model and data", signal.SIGINT, "interrupted"),
        ("run folder:", signal.SIGTERM, "stopped; go on with: qwenlong train --resume {run}"),
        ("starting the actors", signal.SIGHUP, "stopped; go on with: qwenlong train --resume {run}"),
    ],
)
def test_a_signal_before_the_first_step_ends_the_run_at_once(workshop, moment, number, last_line):
    run = workshop.new_run(f"early-{number.name}")
    command = workshop.train(run)
    command.wait_for(lambda: moment in command.output, "sign of life")
    time.sleep(PAUSE_S)
    run.stop(command, number)
    assert (run.exit_statuses, run.survivors) == ([130], [[]])
    assert run.stop_s[0] < STOP_S
    assert "Traceback" not in run.output
    assert run.output.splitlines()[-1] == last_line.format(run=run.folder)


def test_nothing_outlives_an_interrupted_a_killed_or_a_finished_driver(disturbed):
    assert disturbed.survivors == [[], [], []]


def test_a_killed_driver_is_resumed_from_its_last_checkpoint_and_finishes(disturbed):
    assert disturbed.exit_statuses[1:] == [-9, 0], disturbed.output[-4000:]
    steps = [line["step"] for line in disturbed.metrics]
    assert set(steps) == set(range(NUM_STEPS))
    assert len(steps) > NUM_STEPS, "the steps after the last checkpoint are repeated"
    assert disturbed.summary["steps"] == NUM_STEPS


def test_a_resumed_run_repeats_the_numbers_of_an_uninterrupted_one_bit_for_bit(reference, disturbed):
    _assert_same(reference, disturbed, range(NUM_STEPS))
    for key in ("steps", "policy_version", "base_heldout", "stages"):
        assert _without_times(disturbed.summary[key]) == _without_times(reference.summary[key])
    ours, theirs = (run.folder / "model" / "model.safetensors" for run in (disturbed, reference))
    assert ours.read_bytes() == theirs.read_bytes()


def _assert_same(reference, disturbed, steps):
    expected = {line["step"]: line for line in reference.numbers}
    for line in disturbed.numbers:
        if line["step"] in steps:
            assert line == expected[line["step"]]


def _without_times(entry):
    """A summary, or a part of it, without what a clock told."""
    if isinstance(entry, list):
        return [_without_times(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    timed = [key for key in entry if key == "wall_seconds" or key.startswith("time/")]
    return {key: _without_times(value) for key, value in entry.items() if key not in timed}
