"""Kill or freeze any actor: the run goes on by itself, and ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import signal

import pytest

from curriculum.heartbeat import descendants

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_STEPS = 24, 32  # as in conftest.py


@pytest.fixture(scope="module")
def recovered(workshop):
    """One command: an engine core frozen, the coordinator killed, a learner rank frozen."""
    run = workshop.new_run("recovered")
    command = workshop.train(run, cluster__notice_s=2, cluster__standstill_s=6)
    run.wait_for_steps(command, NUM_SFT_STEPS + 1)
    for core in descendants(pid(run, "rollout-0")):
        os.kill(core, signal.SIGSTOP)
    run.wait_for_steps(command, NUM_SFT_STEPS + 3)
    run.kill("coordinator")
    run.wait_for_steps(command, NUM_SFT_STEPS + 6)
    os.kill(pid(run, "learner-0"), signal.SIGSTOP)
    run.finish(command)
    return run


def pid(run, actor):
    return run.events("actors_ready")[-1]["pids"][actor]


def test_a_run_recovers_by_itself_and_ends_with_the_weights_of_an_undisturbed_one(reference, recovered):
    assert (recovered.exit_statuses, recovered.survivors) == ([0], [[]]), recovered.output[-4000:]
    ours, theirs = (run.folder / "model" / "model.safetensors" for run in (recovered, reference))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "Traceback" not in recovered.output


def test_who_stands_still_is_named_before_it_is_killed(recovered):
    lines = [event["line"] for event in recovered.events("standstill")]
    assert any(line.startswith("rollout-0: no progress in") for line in lines), lines
    assert any(line.startswith("learner-0: no answer") for line in lines), lines
    killed = [event["actor"] for event in recovered.events("fault") if event["action"] == "killing it"]
    assert killed == ["rollout-0", "learner-0"]
    assert "learner-0: no answer" in (recovered.folder / "diagnosis.txt").read_text()


def test_a_run_goes_on_from_its_last_checkpoint_within_its_budget(recovered):
    restarts = [event for event in recovered.events("fault") if event["action"] == "restarting the run"]
    assert [(event["part"], event["restarts_left"]) for event in restarts] == [("coordinator", 2), ("learner", 1)]
    assert restarts[0]["from_step"] >= NUM_SFT_STEPS + 1
    assert len(recovered.metrics) - NUM_STEPS <= 2 * 5, "at most checkpoint.every_steps steps are repeated each time"
