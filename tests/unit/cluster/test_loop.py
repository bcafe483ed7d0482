"""The loop on stand-ins: what happens in which order, and what happens when groups carry no signal."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from cluster.roles import GroupLost
from cluster.run.progress import Progress
from cluster.run.recovery import CoordinatorLost
from cluster.run.stopping import Interrupted, JudgeLost, PhaseFruitless

ONE_PHASE = [{"name": "short", "max_prompt_tokens": 25, "end": {"type": "steps", "steps": 1}}]


def metrics_without_times(b):
    lines = [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def always_mixed(lease):
    return [1.0, 0.0]


def test_a_step_samples_reports_trains_syncs_and_closes_in_this_order(bench):
    b = bench(accuracies=always_mixed, phases=ONE_PHASE, curriculum={"retrospective": None})
    calls = b.run()
    assert calls == [
        "stage rl", "open 4", "report 4", "accumulate 4 of 4", "train 4", "publish 1", "deliver 1", "finish step 0",
        "save",
    ]  # fmt: skip


def test_each_slice_goes_to_the_learner_as_soon_as_its_groups_and_those_before_them_are_scored(bench):
    b = bench(accuracies=always_mixed, learner={"slices": 4})
    scored, release = [], {lease: asyncio.Event() for lease in range(4)}

    async def sample(lease):
        if lease.lease_id < 4:
            await release[lease.lease_id].wait()
            scored.append(lease.lease_id)

    b.rollouts.sample = sample

    async def run():
        running = asyncio.create_task(b.loop().run())
        for lease, slices in ((2, 0), (0, 1), (3, 1), (1, 4)):
            release[lease].set()
            for _ in range(50):
                await asyncio.sleep(0)
            first_step = b.calls[: b.calls.index("train 4")] if "train 4" in b.calls else b.calls
            assert first_step.count("accumulate 1 of 4") == slices, f"after lease {lease}"
        await running

    asyncio.run(run())
    assert scored == [2, 0, 3, 1]
    assert [group.lease_id for group in b.learner.groups[0]] == [0, 1, 2, 3]


def test_the_recipe_runs_warm_up_then_the_phases_in_order(bench):
    b = bench(accuracies=always_mixed, demonstrations=3)
    calls = b.run()
    assert calls[:4] == ["stage sft", "sft 2", "sft 1", "publish 1"]
    assert [stage.name for stage in b.progress.finished_stages] == ["sft", "short", "long"]
    assert calls.count("stage rl") == 1, "the optimizer keeps its state between phases"
    assert b.progress.step == 2 + 2 + 2


def test_a_run_of_a_warm_up_alone_has_no_engines_to_send_weights_to(bench):
    b = bench(accuracies=always_mixed, demonstrations=3)
    asyncio.run(b.loop(warm_up_only=True).run())
    assert b.calls == ["stage sft", "sft 2", "sft 1", "save"]
    assert [stage.name for stage in b.progress.finished_stages] == ["sft"]


def test_each_phase_trains_on_its_own_lengths_and_at_most_the_share_is_replayed(bench):
    b = bench(accuracies=lambda lease: [1.0, 0.0] if lease.phase else [0.0, 1.0])
    b.run()
    short, long = b.learner.batches[:2], b.learner.batches[2:]
    assert all(name.startswith("short") for batch in short for name in batch)
    assert all(sum(name.startswith("short") for name in batch) <= 1 for batch in long)


def test_groups_without_variance_are_replaced_until_the_batch_is_full(bench):
    b = bench(accuracies=lambda lease: [1.0, 1.0] if lease.lease_id < 3 else [1.0, 0.0])
    calls = b.run()
    assert calls[1:7] == ["open 4", "report 4", "open 3", "report 3", "accumulate 4 of 4", "train 4"]


def test_grpo_trains_on_groups_without_variance_and_asks_for_no_replacement(bench):
    b = bench(accuracies=lambda lease: [0.0, 0.0], learner={"algorithm": {"type": "grpo"}})
    calls = b.run()
    assert calls.count("train 4") == 4
    assert calls.count("open 4") == 4


def test_a_run_where_nothing_has_variance_ends_and_trains_on_nothing(bench):
    b = bench(accuracies=lambda lease: [0.0, 0.0], curriculum={"max_fruitless_steps": 1})
    calls = b.run()
    assert not any(call.startswith("train") for call in calls)
    assert [stage.end_reason for stage in b.progress.finished_stages] == ["fruitless", "fruitless"]
    assert [stage.fruitless_steps for stage in b.progress.finished_stages] == [1, 1]


def test_a_group_with_fewer_than_two_known_rewards_is_never_trained_on(bench):
    b = bench(
        accuracies=lambda lease: [1.0, None] if lease.lease_id % 2 else [1.0, 0.0],
        learner={"algorithm": {"type": "grpo"}},
    )
    calls = b.run()
    assert [call for call in calls if call.startswith("train")] == ["train 2"] * 4
    assert sum(stage.unknown_rewards for stage in b.progress.finished_stages) == 2 * 4


@pytest.mark.parametrize("max_policy_lag", [0, 1])
def test_truncated_answers_are_left_out_of_the_training_on_request(bench, max_policy_lag):
    b = bench(
        accuracies=lambda lease: [1.0, 0.0, 0.0],
        learner={"algorithm": {"type": "grpo"}, "advantage_scale": "none", "mask_truncated": True, "importance": {}},
        rollout={"group_size": 3, "max_policy_lag": max_policy_lag},
    )
    make = b.rollouts._scored

    def scored(lease, accuracies, policy_version=0):
        group = make(lease, accuracies, policy_version)
        is_cut_short = len(accuracies) == 3 and lease.lease_id % 4 == 0
        group.meta = replace(group.meta, truncated=(is_cut_short, is_cut_short, True)[: len(accuracies)])
        return group

    b.rollouts._scored = scored
    b.run()
    advantages = [item.advantages for item in b.learner.items]
    assert advantages == [(pytest.approx(2 / 3), pytest.approx(-1 / 3), None)] * len(advantages)
    trained = [group.lease_id for groups in b.learner.groups for group in groups]
    assert trained
    assert all(lease_id % 4 for lease_id in trained)


def test_held_out_accuracy_is_measured_before_the_run_and_after_every_stage(bench, task):
    heldout = {"short": [task(f"h{i}", 0) for i in range(4)], "long": [task(f"k{i}", 1) for i in range(3)]}
    b = bench(accuracies=always_mixed, demonstrations=2, heldout=heldout)
    b.run()
    assert b.calls.count("evaluate 4") == b.calls.count("evaluate 3") == 4
    accuracies = {name: cell.accuracy for name, cell in b.progress.base_heldout.phases.items()}
    assert accuracies == {"short": 0.5, "long": pytest.approx(2 / 3)}
    assert [stage.heldout.step for stage in b.progress.finished_stages] == [1, 3, 5]


def test_every_answer_is_written_with_its_advantage(bench):
    b = bench(accuracies=always_mixed)
    b.run()
    rows = pq.read_table(b.folder.trajectories / "step-000000.parquet").to_pylist()
    assert len(rows) == 4 * 2
    assert [round(row["advantage"], 4) for row in rows[:2]] == [0.7071, -0.7071]
    assert all(row["trained"] for row in rows)


ADVANTAGES_BY_SCALE = {
    "group": [1.5, -0.5, -0.5, -0.5],
    "none": [0.75, -0.25, -0.25, -0.25],
    # four groups of 1 0 0 0: mean 0.25, squared deviations 4 * 0.75 = 3, unbiased variance 3 / 15
    "task": [0.75 / 0.2**0.5, *[-0.25 / 0.2**0.5] * 3],
}


@pytest.mark.parametrize("scale", ADVANTAGES_BY_SCALE)
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_logged_is_what_is_trained_for_every_scale_and_with_masked_negatives(bench, scale, masked):
    control = {"entropy_control": {"high": 0.4, "low": 0.2}} if masked else {}  # steps report an entropy of 0.5
    b = bench(
        accuracies=lambda lease: [1.0, 0.0, 0.0, 0.0],
        learner={"advantage_scale": scale, **control},
        rollout={"group_size": 4},
    )
    b.run()
    values = ADVANTAGES_BY_SCALE[scale]
    for step in range(4):
        rows = pq.read_table(b.folder.trajectories / f"step-{step:06d}.parquet").to_pylist()
        logged = [row["advantage"] for row in rows]
        trained = [advantage for item in b.learner.items[4 * step : 4 * step + 4] for advantage in item.advantages]
        assert logged == trained
        expected = [max(value, 0.0) for value in values] if masked and step > 0 else values
        assert logged == pytest.approx(expected * 4, rel=1e-5)
    lines = [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["learner/negatives_masked"] for line in lines] == [0.0, *[float(masked)] * 3]


def test_dr_grpo_trains_on_differences_that_are_divided_by_nothing(bench):
    learner = {"algorithm": {"type": "dr_grpo", "constant_tokens": 3}}
    b = bench(accuracies=lambda lease: [1.0, 0.0, 0.0, 0.0], learner=learner, rollout={"group_size": 4})
    b.run()
    assert {item.advantages for item in b.learner.items} == {(0.75, -0.25, -0.25, -0.25)}


def test_a_schedule_over_the_run_falls_to_its_end_although_a_fruitless_phase_ended_early(bench):
    b = bench(
        accuracies=lambda lease: [0.0, 0.0] if lease.lease_id < 12 else [1.0, 0.0],  # three rounds of four groups
        curriculum={"max_fruitless_steps": 1},
        learner={"learning_rate": 1.0, "schedule": "linear", "schedule_over": "run"},
    )
    b.run()
    assert [stage.steps for stage in b.progress.finished_stages] == [1, 2]
    assert b.learner.learning_rates == pytest.approx([2 / 3, 1 / 3])


def test_metrics_hold_one_line_per_step_and_the_events_hold_the_transition(bench):
    b = bench(accuracies=always_mixed)
    b.run()
    metrics = [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (b.folder.path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    transitions = [event for event in events if event["event"] == "transition"]
    assert [(t["from_phase"], t["to_phase"], t["reason"]) for t in transitions] == [(0, 1, "steps"), (1, None, "steps")]


def test_a_stop_while_answers_are_sampled_saves_the_last_finished_step(bench):
    b = bench(accuracies=always_mixed)

    async def stop_in_the_second_step():
        running = asyncio.create_task(b.loop().run())
        while b.progress.step < 1:
            await asyncio.sleep(0)
        b.rollouts.block = asyncio.Event()
        while b.calls[-1] != "blocked":
            await asyncio.sleep(0)
        b.stop.set()
        await running

    with pytest.raises(Interrupted):
        asyncio.run(stop_in_the_second_step())
    state = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    assert state["progress"]["step"] == 1
    assert b.calls[-2:] == ["save", "abort"], "no request outlives the run"


def stop_at(b, call):
    """Run, and stop as soon as `call` has been made; return the state of the checkpoint."""

    async def run():
        running = asyncio.create_task(b.loop().run())
        while call not in b.calls:
            await asyncio.sleep(0)
        b.stop.set()
        await running

    with pytest.raises(Interrupted):
        asyncio.run(run())
    return json.loads((b.folder.checkpoints.newest() / "state.json").read_text())


def test_a_stop_while_a_slice_is_trained_on_drops_the_step_and_waits_for_nothing(bench):
    b = bench(accuracies=always_mixed)

    async def train():
        if len(b.learner.batches) == 1:
            b.calls.append("second step")
            await asyncio.Event().wait()

    b.learner.train = train
    saved = stop_at(b, "second step")
    assert saved["progress"]["step"] == 1
    assert len(b.learner.batches) == 1, "no update"


def test_a_stop_while_weights_travel_counts_the_step_that_made_them(bench):
    b = bench(accuracies=always_mixed)

    async def travel():
        b.calls.append("travelling")
        await asyncio.Event().wait()

    b.transport.travel = travel
    saved = stop_at(b, "travelling")
    assert (saved["progress"]["step"], saved["progress"]["policy_version"]) == (1, 1)
    assert len(metrics_without_times(b)) == 1


def test_a_stop_during_a_step_of_the_warm_up_saves_that_step(bench):
    b = bench(accuracies=always_mixed, demonstrations=6)
    saved = stop_at(b, "sft 2")
    assert saved["progress"]["step"] == b.calls.count("sft 2")


def test_a_stop_right_after_a_checkpoint_does_not_write_it_again(bench):
    b = bench(accuracies=always_mixed, checkpoint={"every_steps": 1, "keep": {"last": 9}})
    saved = stop_at(b, "save")
    assert saved["progress"]["step"] == b.calls.count("save")


def test_an_engine_that_does_not_answer_is_not_waited_for_at_the_end(bench, monkeypatch):
    b = bench(accuracies=always_mixed)
    monkeypatch.setattr("cluster.loop.CLOSE_S", 0.01)
    b.rollouts.block, b.rollouts.abort = asyncio.Event(), asyncio.Event().wait

    async def stop():
        running = asyncio.create_task(b.loop().run())
        while "blocked" not in b.calls:
            await asyncio.sleep(0)
        b.stop.set()
        await asyncio.wait_for(running, 5)

    with pytest.raises(Interrupted):
        asyncio.run(stop())


def test_a_run_resumed_from_its_checkpoint_trains_on_the_same_batches(bench):
    often_mixed = lambda lease: [1.0, 0.0] if lease.lease_id % 3 else [1.0, 1.0]  # noqa: E731
    whole = bench(name="whole", accuracies=often_mixed)
    whole.run()
    half = bench(name="half", accuracies=often_mixed, checkpoint={"every_steps": 1, "keep": {"last": 9}})
    half.run()
    saved = json.loads((half.folder.checkpoints.path / "step-000002" / "state.json").read_text())
    resumed = bench(name="resumed", accuracies=often_mixed)
    resumed.coordinator.load_state_dict(saved["curriculum"])
    resumed.progress = Progress.from_state_dict(saved["progress"])
    resumed.rollouts.policy_version = resumed.progress.policy_version
    resumed.run()
    assert resumed.learner.batches == whole.learner.batches[2:]
    assert metrics_without_times(resumed) == metrics_without_times(whole)[2:]


def test_a_resumed_run_masks_negatives_as_the_run_did_that_it_continues(bench):
    control = {"entropy_control": {"high": 0.4, "low": 0.2}}  # steps report an entropy of 0.5
    whole = bench(name="whole", accuracies=always_mixed, learner=control)
    whole.run()
    half = bench(
        name="half", accuracies=always_mixed, learner=control, checkpoint={"every_steps": 1, "keep": {"last": 9}}
    )
    half.run()
    saved = json.loads((half.folder.checkpoints.path / "step-000001" / "state.json").read_text())
    resumed = bench(name="resumed", accuracies=always_mixed, learner=control)
    resumed.coordinator.load_state_dict(saved["curriculum"])
    resumed.progress = Progress.from_state_dict(saved["progress"])
    resumed.rollouts.policy_version = resumed.progress.policy_version
    resumed.run()
    trained = [item.advantages for item in resumed.learner.items]
    assert trained == [item.advantages for item in whole.learner.items[4:]]
    assert {advantages[1] for advantages in trained} == {0.0}, "the negative ones, from the first step on"


def test_a_step_waits_for_a_judge_that_is_away_and_the_phase_does_not_notice(bench):
    b = bench(
        accuracies=lambda lease: [None, 1.0] if lease.lease_id < 12 else [1.0, 0.0],
        curriculum={"max_fruitless_steps": 1},
        reward={"max_outage_s": 1.0},
    )
    calls = b.run()
    assert [stage.steps for stage in b.progress.finished_stages] == [2, 2]
    assert [stage.fruitless_steps for stage in b.progress.finished_stages] == [0, 0]
    assert calls[: calls.index("train 4")].count("report 4") == 4, "three rounds found nothing, the next one did"
    assert b.progress.finished_stages[0].unknown_rewards == 12


def test_a_judge_that_stays_away_stops_the_run_after_a_checkpoint(bench):
    b = bench(accuracies=lambda lease: [1.0, 0.0] if lease.lease_id < 4 else [None, 1.0], reward={"max_outage_s": 0.0})
    with pytest.raises(JudgeLost, match=r"reward.max_outage_s=0 .*--resume"):
        b.run()
    assert b.calls[-1] == "save"
    assert b.progress.step == 1


def test_a_phase_without_anything_to_train_on_stops_the_run_where_the_recipe_says_so(bench):
    fruitless = {"max_fruitless_steps": 1, "after_fruitless": "stop"}
    b = bench(accuracies=lambda lease: [0.0, 0.0], curriculum=fruitless)
    with pytest.raises(PhaseFruitless, match=r"short trained on nothing in 1 steps in a row .*--resume"):
        b.run()
    saved = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    resumed = bench(name="resumed", accuracies=always_mixed, curriculum=fruitless)
    resumed.coordinator.load_state_dict(saved["curriculum"])
    resumed.progress = Progress.from_state_dict(saved["progress"])
    resumed.run()
    assert [(stage.name, stage.end_reason) for stage in resumed.progress.finished_stages] == [
        ("short", "fruitless"), ("long", "steps"),
    ]  # fmt: skip


def test_lost_groups_are_replaced_and_a_run_that_loses_group_after_group_stops(bench):
    def losing(is_lost):
        b = bench(name=f"run-{is_lost(9)}", accuracies=always_mixed, phases=ONE_PHASE)

        async def sample(lease):
            if is_lost(lease.lease_id):
                raise GroupLost(lease.lease_id, lease.task_id, "its node died")

        b.rollouts.sample = sample
        return b

    some = losing(lambda lease: lease in (1, 4))
    some.run()
    assert [len(batch) for batch in some.learner.batches] == [4]
    assert (some.progress.ledger.trained, some.progress.ledger.failed) == (4, 2)
    with pytest.raises(GroupLost, match="its node died"):
        losing(lambda lease: True).run()


def saved_steps(b):
    return sorted(path.name for path in b.folder.checkpoints.path.glob("step-*"))


def test_a_coordinator_that_dies_while_a_batch_is_sampled_costs_no_finished_step(bench):
    often_mixed = lambda lease: [1.0, 0.0] if lease.lease_id % 3 else [1.0, 1.0]  # noqa: E731
    whole = bench(name="whole", accuracies=often_mixed)
    whole.run()
    b = bench(name="died", accuracies=often_mixed)

    async def die_in_the_third_step(lease):
        if b.progress.step == 2:
            raise CoordinatorLost

    b.rollouts.sample = die_in_the_third_step
    with pytest.raises(CoordinatorLost):
        b.run()
    assert saved_steps(b) == ["step-000002"]
    saved = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    again = bench(name="again", accuracies=often_mixed)
    again.coordinator.load_state_dict(saved["curriculum"])
    again.progress = Progress.from_state_dict(saved["progress"])
    again.rollouts.policy_version = again.progress.policy_version
    again.run()
    assert again.learner.batches == whole.learner.batches[2:]


def test_a_coordinator_that_dies_after_the_update_of_a_step_takes_that_step_with_it(bench):
    b = bench(accuracies=always_mixed, checkpoint={"every_steps": 1, "keep": {"last": 9}})

    async def dies():
        if b.progress.step == 2:
            raise CoordinatorLost

    b.transport.travel = dies  # the weights of the third step do not arrive, the learner has them
    with pytest.raises(CoordinatorLost):
        b.run()
    assert saved_steps(b) == ["step-000001", "step-000002"]
    saved = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    assert (saved["progress"]["step"], saved["progress"]["policy_version"]) == (2, 2)


def test_a_diagnosis_is_told_where_the_loop_stands(bench):
    b = bench(accuracies=always_mixed)
    loop, told = b.loop(), []

    async def look(lease):
        told.append(loop.facts())

    b.rollouts.sample = look
    asyncio.run(loop.run())
    assert told[0] == {
        "finished steps": 0, "stage": "short", "policy_version of the learner": 0, "groups that wait for a batch": 0,
    }  # fmt: skip
    assert (told[-1]["finished steps"], told[-1]["stage"]) == (3, "long")
