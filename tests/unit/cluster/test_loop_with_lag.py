"""The loop with a policy lag of two: the same recipe, sampled while the learner trains."""

from __future__ import annotations

import asyncio
import json

import pyarrow.parquet as pq
import pytest

from cluster.batches.ledger import Ledger
from cluster.run.progress import Progress
from cluster.run.stopping import Interrupted, JudgeLost
from cluster.weights.sync import WeightSyncError

LAG = {"group_size": 2, "max_policy_lag": 2}
LONGER = [
    {"name": "short", "max_prompt_tokens": 15, "end": {"type": "steps", "steps": 3}},
    {"name": "long", "max_prompt_tokens": 25, "end": {"type": "steps", "steps": 5}},
]


def always_mixed(lease):
    return [1.0, 0.0]


def mixed_two_times_in_three(lease):
    return [1.0, 0.0] if lease.lease_id % 3 else [1.0, 1.0]


@pytest.fixture
def lagging(bench):
    """A loop whose learner takes long enough for groups to arrive meanwhile."""

    def build(**arguments):
        b = bench(**{"rollout": LAG, "learner": {"importance": {}}, "phases": LONGER, **arguments})

        async def train():
            for _ in range(20):
                await asyncio.sleep(0)

        b.learner.train = train
        return b

    return build


def metrics_of(b):
    return [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]


def imbalance(b):
    leases, still_open = b.coordinator.lease_counts(), b.coordinator.open_leases()
    return b.progress.ledger.imbalance(leases, num_open=len(still_open))


def trained_leases(b):
    return [group.lease_id for batch in b.learner.groups for group in batch]


def test_every_step_trains_a_whole_batch_that_is_two_updates_old_at_most(lagging):
    b = lagging(accuracies=mixed_two_times_in_three, demonstrations=3)
    b.run()
    assert [stage.name for stage in b.progress.finished_stages] == ["sft", "short", "long"]
    assert [len(batch) for batch in b.learner.batches] == [4] * 8
    lines = [line for line in metrics_of(b) if line["stage"] != "sft"]
    assert {line["rollout/policy_lag_max"] for line in lines} <= {0, 1, 2}
    assert max(line["rollout/policy_lag_mean"] for line in lines) > 0
    assert max(line["rollout/buffer_groups"] for line in lines) > 0
    group_bytes = 4 * 10 + 2 * 3 * 8  # 10 prompt tokens, 2 answers of 3
    assert all(line["rollout/buffer_bytes"] == line["rollout/buffer_groups"] * group_bytes for line in lines)
    assert all(line["rollout/object_store_bytes"] == 4096 for line in lines)


def test_the_ledger_of_a_run_balances_and_is_in_its_metrics(lagging):
    b = lagging(accuracies=mixed_two_times_in_three)
    b.run()
    assert imbalance(b) is None
    assert b.coordinator.open_leases() == ()
    assert b.progress.ledger.trained == 8 * 4
    assert b.progress.ledger.no_variance > 0
    last = metrics_of(b)[-1]
    assert {name: last[f"ledger/{name}"] for name in Ledger.__slots__} == {
        name: getattr(b.progress.ledger, name) for name in Ledger.__slots__
    }


def test_a_strictly_on_policy_run_balances_too_and_has_no_lag(bench):
    b = bench(accuracies=mixed_two_times_in_three)
    b.run()
    assert imbalance(b) is None
    assert all(line["rollout/policy_lag_max"] == line["rollout/buffer_groups"] == 0 for line in metrics_of(b))


def test_each_answer_is_written_once_and_marked_as_trained_in_the_step_that_trained_it(lagging):
    b = lagging(accuracies=mixed_two_times_in_three)
    b.run()
    for step, batch in enumerate(b.learner.groups):
        rows = pq.read_table(b.folder.trajectories / f"step-{step:06d}.parquet").to_pylist()
        assert {row["lease_id"] for row in rows if row["trained"]} == {group.lease_id for group in batch}
    written = [
        (row["lease_id"], row["sample"])
        for path in b.folder.trajectories.iterdir()
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(written) == len(set(written)) == 2 * (b.progress.ledger.trained + b.progress.ledger.no_variance)


def test_each_phase_trains_on_its_own_lengths_and_on_what_it_replays(lagging):
    b = lagging(accuracies=always_mixed, phases=[*LONGER])
    b.run()
    for batch, phase in zip(b.learner.groups, [0] * 3 + [1] * 5, strict=True):
        assert all(group.meta.lease.phase == phase for group in batch)
        assert all(group.task_id.startswith("long") for group in batch if phase and not group.meta.lease.replayed)


def test_a_run_where_nothing_has_variance_ends_after_a_bounded_number_of_tries(lagging):
    b = lagging(accuracies=lambda lease: [0.0, 0.0], curriculum={"max_fruitless_steps": 1})
    b.run()
    assert [stage.end_reason for stage in b.progress.finished_stages] == ["fruitless", "fruitless"]
    assert b.learner.batches == []
    assert 2 * 3 * 4 <= b.progress.ledger.ended <= 2 * (3 + 3) * 4, "three batches' worth of tries, and what was open"
    assert imbalance(b) is None


def test_a_judge_that_stays_away_stops_the_run_and_nothing_is_sampled_while_it_is_waited_for(lagging):
    b = lagging(accuracies=lambda lease: [None, 1.0], reward={"max_outage_s": 0.0})
    with pytest.raises(JudgeLost, match="--resume"):
        b.run()
    assert b.coordinator.lease_counts().leased <= (3 + 3) * 4


def test_a_stop_and_a_resume_train_on_nothing_twice_and_lose_nothing(lagging):
    first = lagging(accuracies=mixed_two_times_in_three, name="first")

    async def stop_in_the_fifth_step():
        running = asyncio.create_task(first.loop().run())
        while first.progress.step < 4:
            await asyncio.sleep(0)
        first.rollouts.block = asyncio.Event()
        first.stop.set()
        await running

    with pytest.raises(Interrupted):
        asyncio.run(stop_in_the_fifth_step())
    saved = json.loads((first.folder.checkpoints.newest() / "state.json").read_text())
    second = lagging(accuracies=mixed_two_times_in_three, name="second")
    second.coordinator.load_state_dict(saved["curriculum"])
    second.progress = Progress.from_state_dict(saved["progress"])
    second.rollouts.policy_version = second.progress.policy_version
    left = set(second.coordinator.open_leases())
    assert left, "the checkpoint has groups under way"
    second.run()
    done = saved["progress"]["step"]
    before = [group.lease_id for batch in first.learner.groups[:done] for group in batch]
    assert not set(before) & set(trained_leases(second))
    assert [len(batch) for batch in second.learner.batches] == [4] * (8 - done)
    assert second.progress.ledger.trained == 8 * 4
    assert imbalance(second) is None
    assert second.coordinator.open_leases() == ()


def test_the_learner_begins_the_next_batch_while_new_weights_travel_to_the_engines(lagging):
    b = lagging(accuracies=always_mixed)

    async def travel():
        while b.calls.count("train 4") == 1 and not b.calls[-1].startswith("accumulate"):
            await asyncio.sleep(0.001)

    b.transport.travel = travel
    b.run()
    begun = [call for call in b.calls if call.startswith(("publish", "deliver", "accumulate"))]
    first = begun.index("publish 1")
    assert begun[first : first + 3] == ["publish 1", "accumulate 4 of 4", "deliver 1"]
    assert imbalance(b) is None
    lines = [line for line in metrics_of(b) if "rollout/policy_lag_max" in line]
    assert max(line["rollout/policy_lag_max"] for line in lines) <= 2


def test_weights_that_an_engine_refuses_end_the_run_while_it_waits_for_groups(lagging):
    b = lagging(accuracies=always_mixed)

    async def travel():
        await asyncio.sleep(0)
        b.rollouts.block = asyncio.Event()
        raise WeightSyncError("rollout-0: tensor norm is missing")

    b.transport.travel = travel
    with pytest.raises(WeightSyncError, match="tensor norm is missing"):
        b.run()


def test_no_task_of_the_loop_is_left_when_it_ends(lagging):
    b = lagging(accuracies=always_mixed)

    async def run():
        await b.loop().run()
        await asyncio.sleep(0)  # Python 3.12 returns before those that were cancelled have noticed it
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
