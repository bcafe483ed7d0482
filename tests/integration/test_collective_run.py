"""A run whose weights are broadcast to two engines; one is killed, and the group is formed anew without a stop."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_STEPS = 24, 28  # 24 as in conftest.py


@pytest.fixture(scope="module")
def broadcasting(workshop):
    phases = [{**phase, "end": {"type": "steps", "steps": 2}} for phase in workshop.overrides["curriculum.phases"]]
    run = workshop.new_run("broadcasting")
    command = workshop.train(
        run, rollout__sync__transport="collective", rollout__num_actors=2, curriculum__phases=phases
    )
    command.wait_for(lambda: len(run.metrics) >= NUM_SFT_STEPS + 1, "first step of the first phase")
    os.kill(run.events("actors_ready")[0]["pids"]["rollout-1"], signal.SIGKILL)
    run.finish(command)
    return run


def test_a_run_with_broadcast_weights_ends_well_and_leaves_no_process_behind(broadcasting):
    assert broadcasting.exit_statuses == [0], broadcasting.output[-4000:]
    assert broadcasting.survivors == [[]]
    assert broadcasting.summary["steps"] == NUM_STEPS


def test_both_engines_receive_every_update_also_after_one_of_them_was_killed(broadcasting):
    syncs = broadcasting.events("sync")
    assert [event["num_engines"] for event in syncs] == [2] * len(syncs)
    faults = [(event["actor"], event["action"]) for event in broadcasting.events("fault")]
    assert faults == [("rollout-1", "restarting"), ("rollout-1", "back")]


def test_every_batch_is_sampled_from_the_weights_that_the_learner_holds(broadcasting):
    gaps = [line["learner/rollout_logprob_gap_max"] for line in broadcasting.metrics if line["stage"] != "sft"]
    assert len(gaps) == NUM_STEPS - NUM_SFT_STEPS
    assert max(gaps) < 1e-4
