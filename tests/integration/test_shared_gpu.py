"""Engines and learner in turns, as on a shared GPU: a run on a CPU goes through the same calls, in the same order.

An engine that is killed while it sleeps, and a stop while it sleeps, leave no trace in the numbers.
"""

from __future__ import annotations

import signal

import pytest

from tests.harness.recipe import NUM_SFT_STEPS

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def apart(workshop):
    """Engines and learner side by side, each batch in one piece."""
    run = workshop.new_run("apart")
    run.finish(workshop.train(run, learner__slices=1))
    return run


@pytest.fixture(scope="module")
def in_turns(workshop):
    """In turns; the engine is killed in the warm-up, through which it sleeps, and the run is stopped in a phase."""
    run = workshop.new_run("in-turns")
    command = workshop.train(run, learner__slices=1, cluster__share_gpus="all")
    run.wait_for_steps(command, 1)
    run.kill("rollout-0")
    run.wait_for_steps(command, NUM_SFT_STEPS + 2)
    run.stop(command, signal.SIGTERM)
    run.finish(workshop.resume(run))
    return run


def test_a_run_in_turns_gives_the_numbers_and_the_weights_of_one_side_by_side(apart, in_turns):
    assert apart.exit_statuses == [0], apart.output[-4000:]
    assert in_turns.exit_statuses[-1] == 0, in_turns.output[-4000:]
    numbers = {line["step"]: line for line in in_turns.numbers}
    assert list(numbers.values()) == apart.numbers
    ours, theirs = (run.folder / "model" / "model.safetensors" for run in (in_turns, apart))
    assert ours.read_bytes() == theirs.read_bytes()


def test_an_engine_that_is_killed_while_it_sleeps_is_repaired_when_its_turn_comes(in_turns):
    faults = [(event["actor"], event["action"]) for event in in_turns.events("fault")]
    assert faults == [("rollout-0", "restarting"), ("rollout-0", "back")]
    evaluated = next(event["time"] for event in in_turns.events("evaluation") if event["step"] == NUM_SFT_STEPS)
    assert in_turns.metrics[NUM_SFT_STEPS - 1]["step"] == NUM_SFT_STEPS - 1, "the warm-up went on without it"
    assert all(event["time"] < evaluated for event in in_turns.events("fault"))


def test_a_run_that_is_stopped_in_turns_leaves_nothing_running(in_turns):
    assert in_turns.survivors == [[], []]
