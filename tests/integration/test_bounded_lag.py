"""A run that samples while it trains, on real parts: bound and ledger hold over a dead engine, a stop and a resume."""

from __future__ import annotations

import signal

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 2, 6  # as in conftest.py
NUM_STEPS = NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS
MAX_POLICY_LAG = 2


@pytest.fixture(scope="module")
def lagging(workshop):
    """A run with a lag of at most two updates: its rollout actor is killed, then its driver alone stopped, then one of
    its two learner ranks killed while the other one waits for it."""
    run = workshop.new_run("lagging")
    lag = {"rollout__max_policy_lag": MAX_POLICY_LAG, "learner__importance": {"cap": 2.0}, "learner__num_ranks": 2}
    command = workshop.train(run, **lag)
    run.wait_for_steps(command, NUM_SFT_STEPS + 1)
    run.kill("rollout-0")
    run.wait_for_steps(command, NUM_STEPS - 4)
    command.process.send_signal(signal.SIGINT)
    run.finish(command)

    num_steps = len(run.metrics)
    command = workshop.resume(run)
    run.wait_for_steps(command, num_steps + 1)
    run.kill("learner-1")
    run.finish(command)
    return run


@pytest.fixture(scope="module")
def last_lines(lagging):
    """The metrics of each step; of a step that was repeated after the resume the later line counts."""
    return {line["step"]: line for line in lagging.metrics}


def test_the_run_stops_resumes_and_leaves_no_process_behind(lagging):
    assert lagging.exit_statuses == [130, 0], lagging.output[-2000:]
    assert lagging.survivors == [[], []]
    assert lagging.events("resumed")[0]["checkpoint"] == lagging.checkpoints[0][-1]


def test_a_killed_rollout_actor_comes_back_within_the_run(lagging):
    faults = [(event["actor"], event["action"]) for event in lagging.events("fault") if "actor" in event]
    assert faults == [("rollout-0", "restarting"), ("rollout-0", "back")]


def test_a_killed_learner_rank_lets_the_run_go_on_from_its_last_checkpoint_by_itself(lagging):
    (restart,) = [event for event in lagging.events("fault") if event["action"] == "restarting the run"]
    assert restart["part"] == "learner"
    assert [event["step"] for event in lagging.events("resumed")][1:] == [restart["from_step"]]


def test_batches_are_old_by_two_updates_at_most_and_some_are_old(last_lines):
    trained = [line for line in last_lines.values() if line.get("rollout/groups_trained")]
    assert len(trained) >= NUM_LONG_STEPS
    assert all(0 <= line["rollout/policy_lag_max"] <= MAX_POLICY_LAG for line in trained)
    assert any(line["rollout/policy_lag_mean"] > 0 for line in trained), "sampling and training never overlapped"


def test_the_ledger_balances_over_stop_and_resume(lagging):
    ledger, leases = lagging.summary["ledger"], lagging.summary["leases"]
    assert ledger.pop("imbalance") is None
    assert ledger["too_old"] == ledger["failed"] == 0
    assert sum(ledger.values()) == leases["opened"] == leases["reported"] + leases["returned"]
    assert ledger["trained"] == sum(stage["groups_trained"] for stage in lagging.summary["stages"])


def test_no_answer_is_trained_on_twice(lagging):
    leases = [
        row["lease_id"]
        for path in sorted(lagging.folder.glob("trajectories/step-*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["trained"] and row["sample"] == 0
    ]
    assert leases
    assert len(set(leases)) == len(leases)
    assert len(leases) == lagging.summary["ledger"]["trained"]


def test_no_group_of_the_first_phase_is_trained_on_in_the_second_unless_it_is_replayed(lagging, last_lines):
    for path in sorted(lagging.folder.glob("trajectories/step-*.parquet")):
        phase = last_lines[int(path.stem.removeprefix("step-"))]["curriculum/phase"]
        assert {row["phase"] for row in pq.read_table(path).to_pylist() if row["trained"]} <= {phase}
