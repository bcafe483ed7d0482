"""The loop under guards: an update that is left out, weights that go back, a run that stops."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from cluster.run.guards import GuardStop
from cluster.run.progress import Progress
from learner.weights.finite import NonFiniteWeights

NUM_STEPS = 8
PHASES = [{"name": "short", "max_prompt_tokens": 15, "end": {"type": "steps", "steps": NUM_STEPS}}]
LAGS = {"on policy": {}, "lag 1": {"rollout": {"group_size": 2, "max_policy_lag": 1}, "learner": {"importance": {}}}}
COLLAPSE = {"metric": "learner/entropy", "below": 0.1}


def always_mixed(lease):
    return [1.0, 0.0]


def guarded(bench, *guards, **overrides):
    return bench(accuracies=always_mixed, phases=PHASES, guards=list(guards), **overrides)


def events(b, kind):
    lines = map(json.loads, (b.folder.path / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def check_ledger(b):
    leases, still_open = b.coordinator.lease_counts(), b.coordinator.open_leases()
    assert b.progress.ledger.imbalance(leases, num_open=len(still_open)) is None


def test_a_warning_is_an_event_and_changes_nothing_of_the_run(bench):
    watched, plain = guarded(bench, COLLAPSE, name="watched"), guarded(bench, name="plain")
    watched.learner.entropies = {2: 0.01}
    assert watched.run() == plain.run()
    (event,) = events(watched, "guard")
    assert {key: event[key] for key in ("step", "metric", "value", "bound", "steps", "action")} == {
        "step": 2, "metric": "learner/entropy", "value": 0.01, "bound": "below 0.1", "steps": 1, "action": "warn",
    }  # fmt: skip
    assert not events(plain, "guard")


@pytest.mark.parametrize("overrides", LAGS.values(), ids=LAGS)
def test_a_skipped_update_leaves_weights_and_version_alone_and_its_groups_are_booked_as_skipped(bench, overrides):
    b = guarded(bench, {**COLLAPSE, "action": "skip"}, **overrides)

    async def drop():
        b.calls.append("drop")
        b.learner.slices = []
        b.learner.report = replace(b.learner.report, entropy=0.5)

    b.learner.drop = drop
    b.learner.report = replace(b.learner.report, entropy=0.01)  # before the first update
    b.run()
    assert (b.calls.count("drop"), b.calls.count("train 4")) == (1, NUM_STEPS - 1)
    assert b.calls.index("drop") < b.calls.index("train 4")
    assert b.progress.policy_version == NUM_STEPS - 1
    assert (b.progress.ledger.skipped, b.progress.ledger.trained) == (4, 4 * (NUM_STEPS - 1))
    check_ledger(b)
    (stage,) = b.progress.finished_stages
    assert (stage.fruitless_steps, stage.end_reason) == (0, "steps"), "a skipped step had groups with a signal"
    rows = pq.read_table(b.folder.trajectories / "step-000000.parquet").to_pylist()
    assert not any(row["trained"] for row in rows)


def test_a_guard_that_would_leave_out_every_update_stops_the_run(bench):
    b = guarded(bench, {"metric": "reward/mean", "below": 0.9, "action": "skip"})
    with pytest.raises(GuardStop, match=r"^guard: reward/mean is 0.5, below 0.9, in 4 steps in a row, and 3 updates "):
        b.run()
    assert b.calls.count("drop") == 3
    assert "preview" not in b.calls, "the rewards are known without the learner"


@pytest.mark.parametrize("overrides", LAGS.values(), ids=LAGS)
def test_the_learner_goes_back_to_the_last_good_checkpoint_and_the_curriculum_goes_on(bench, overrides):
    rule = {**COLLAPSE, "steps": 2, "action": "roll_back"}
    b = guarded(bench, rule, checkpoint={"every_steps": 2, "keep": {"last": 1}}, **overrides)
    b.learner.entropies = {4: 0.01, 5: 0.01}
    b.run()
    assert [call for call in b.calls if call.startswith("load")] == ["load step-000002"], (
        "the checkpoint after four steps holds the weights that the fifth step showed to be bad"
    )
    (event,) = events(b, "rolled_back")
    assert (event["step"], event["checkpoint"]) == (6, 2)
    assert len(b.learner.batches) == NUM_STEPS
    tasks = [task for batch in b.learner.batches for task in batch]
    assert len(set(tasks[:12])) == 12, "every task once per pass"
    assert b.progress.policy_version == NUM_STEPS + 1, "the old weights were sent as a new version"
    assert b.progress.guards.num_roll_backs == 1
    check_ledger(b)


def test_a_run_that_is_killed_after_it_went_back_goes_on_from_there(bench):
    b = guarded(bench, {**COLLAPSE, "action": "roll_back"}, checkpoint={"every_steps": 2, "keep": {"last": 1}})
    b.learner.entropies = {3: 0.01}
    loop = b.loop()

    async def run():
        running = asyncio.create_task(loop.run())
        while not events(b, "rolled_back") if (b.folder.path / "events.jsonl").exists() else True:
            await asyncio.sleep(0)
        b.stop.set()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    newest = b.folder.checkpoints.newest()
    state = json.loads((newest / "state.json").read_text())
    restored = Progress.from_state_dict(state["progress"])
    assert restored.guards.num_roll_backs == 1
    assert restored.guards.counts == {}
    assert restored.policy_version == b.progress.policy_version


def test_a_run_goes_back_from_its_first_phase_to_the_checkpoint_of_the_warm_up(bench):
    rule = {**COLLAPSE, "action": "roll_back"}
    b = guarded(bench, rule, demonstrations=3, checkpoint={"every_steps": 100, "keep": {"last": 1}})
    b.learner.entropies = {1: 0.01}
    b.run()
    load = b.calls.index("load step-000002")
    assert (b.calls[load - 1], b.calls[load + 1]) == ("stage sft", "stage rl"), "its optimizer is that of the warm-up"


def test_the_warm_up_is_guarded_as_well(bench):
    b = guarded(bench, {"metric": "sft/loss", "above": 0.5, "steps": 2, "action": "stop"}, demonstrations=6)
    with pytest.raises(GuardStop, match=r"^guard: sft/loss is 1, above 0.5, in 2 steps in a row; start again with"):
        b.run()


def test_a_stop_saves_nothing_that_a_guard_found_bad(bench):
    b = guarded(bench, {**COLLAPSE, "action": "stop"}, checkpoint={"every_steps": 2, "keep": {"last": 1}})
    b.learner.entropies = {4: 0.01}
    with pytest.raises(
        GuardStop, match=r"the last good checkpoint \(--resume RUN_FOLDER --step 2 --allow-change KEY\)"
    ):
        b.run()
    assert b.folder.checkpoints.newest().name == "step-000004"
    assert (b.folder.checkpoints.path / "step-000002").is_dir(), "kept, whatever keep.last says"


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved_and_the_step_is_named(bench):
    b = guarded(bench, checkpoint={"every_steps": 1, "keep": {"last": 2}})

    async def transfer(version):
        if version == 3:
            raise NonFiniteWeights("learner: weight update 3: tensor a holds NaN or infinite values")
        return await original(version)

    original, b.transport.transfer = b.transport.transfer, transfer
    with pytest.raises(NonFiniteWeights, match=r"^step 2: learner: weight update 3: tensor a "):
        b.run()
    assert b.folder.checkpoints.newest().name == "step-000002"
