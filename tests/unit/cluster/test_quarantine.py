"""Tasks that fail again and again: the run goes on without them, and everything adds up."""

from __future__ import annotations

import asyncio
import json

import pytest

from cluster.batches.source import Collected
from cluster.roles import GroupLost, TaskFailed
from cluster.run.progress import Progress
from cluster.run.quarantine import QuarantinedTask, TooManyQuarantined, check_quarantine
from cluster.run.summary import summarise

PHASES = [{"name": "short", "max_prompt_tokens": 15, "end": {"type": "steps", "steps": 8}}]  # 12 tasks, 4 a step
LAGS = {"on policy": {}, "lag 1": {"rollout": {"group_size": 2, "max_policy_lag": 1}, "learner": {"importance": {}}}}
POISON = "short-7"


def always_mixed(lease):
    return [1.0, 0.0]


def poisoned(bench, is_poison, **overrides):
    b = bench(accuracies=always_mixed, phases=PHASES, **overrides)

    async def sample(lease):
        await asyncio.sleep(0)
        if is_poison(lease.task_id):
            raise TaskFailed(lease.lease_id, lease.task_id, "judge-0 died, 2 times", "judge-0")

    b.rollouts.sample = sample
    return b


def lines(b, name):
    return [json.loads(line) for line in (b.folder.path / name).read_text().splitlines()]


@pytest.mark.parametrize("overrides", LAGS.values(), ids=LAGS)
def test_a_poison_task_is_met_once_named_everywhere_and_the_run_goes_on(bench, overrides):
    b = poisoned(bench, lambda task: task == POISON, **overrides)
    b.run()
    assert len(b.learner.batches) == 8
    assert POISON not in [task for batch in b.learner.batches for task in batch]
    (entry,) = lines(b, "quarantine.jsonl")
    (event,) = [event for event in lines(b, "events.jsonl") if event["event"] == "quarantined"]
    assert entry == {"task_id": POISON, "reason": "judge-0 died, 2 times", "actor": "judge-0", "step": entry["step"]}
    assert entry.items() <= event.items()
    metrics = lines(b, "metrics.jsonl")
    assert [line["rollout/quarantined_tasks"] for line in metrics] == [
        float(line["step"] >= entry["step"]) for line in metrics
    ]
    assert b.progress.ledger.quarantined == 1
    leases = b.coordinator.lease_counts()
    assert b.progress.ledger.imbalance(leases, num_open=len(b.coordinator.open_leases())) is None
    summary = summarise(b.config, b.progress, leases)
    assert summary["quarantine"] == {POISON: {key: entry[key] for key in ("reason", "actor", "step")}}
    assert Progress.from_state_dict(json.loads(json.dumps(b.progress.state_dict()))) == b.progress


def test_on_policy_the_batch_is_filled_up_by_another_task(bench):
    b = poisoned(bench, lambda task: task == POISON)
    b.run()
    assert {len(batch) for batch in b.learner.batches} == {4}


def test_a_task_that_fails_behind_the_last_batch_of_its_phase_is_in_quarantine_all_the_same(bench):
    """With a lag of 2 groups of the next batches are under way when a plateau ends the phase."""
    ends = [{"type": "epochs", "epochs": 1}, {"type": "steps", "steps": 2}]
    lengths = zip(("short", "long"), (15, 25), ends, strict=True)
    phases = [{"name": name, "max_prompt_tokens": tokens, "end": end} for name, tokens, end in lengths]
    b = bench(
        accuracies=always_mixed,
        phases=phases,
        rollout={"group_size": 2, "max_policy_lag": 2},
        learner={"importance": {}},
    )
    failed = []

    async def sample(lease):
        if not failed and lease.task_id.startswith("short") and lease.attempt == 1:
            failed.append(lease.task_id)
            raise TaskFailed(lease.lease_id, lease.task_id, "rollout-0 died", "rollout-0")

    b.rollouts.sample = sample
    b.run()
    leases = b.coordinator.lease_counts()
    assert b.progress.ledger.imbalance(leases, num_open=len(b.coordinator.open_leases())) is None
    assert [(line["task_id"], line["step"]) for line in lines(b, "quarantine.jsonl")] == [(failed[0], 2)]
    assert (b.progress.ledger.quarantined, b.progress.ledger.trained) == (1, 5 * 4)
    assert set(b.coordinator.state_dict()["quarantined"]) == b.progress.quarantine.keys()


def test_a_step_in_which_more_than_a_batch_fails_ends_the_run(bench):
    b = poisoned(bench, lambda task: True)
    with pytest.raises(TaskFailed, match="judge-0 died"):
        b.run()


def report(num_quarantined, num_tasks):
    class Report:
        pass

    Report.num_quarantined, Report.num_tasks = num_quarantined, num_tasks
    return Report


def quarantine(number):
    return {
        f"t{i}": QuarantinedTask(reason="rollout-1 returned 1 of 2 samples", actor=f"rollout-{min(i, 1)}", step=i)
        for i in range(number)
    }


@pytest.mark.parametrize(("number", "num_tasks"), [(20, 30), (20, 1000), (50, 1000)])
def test_a_few_tasks_in_quarantine_are_no_reason_to_stop(number, num_tasks):
    check_quarantine(quarantine(number), report(number, num_tasks))


@pytest.mark.parametrize(("number", "num_tasks"), [(21, 30), (21, 400), (51, 1000)])
def test_too_many_tasks_in_quarantine_accuse_the_actor_that_failed_at_most_of_them(number, num_tasks):
    with pytest.raises(TooManyQuarantined) as told:
        check_quarantine(quarantine(number), report(number, num_tasks))
    assert str(told.value) == (
        f"{number} of {num_tasks} tasks are in quarantine, {number - 1} of them because of rollout-1, so the fault is "
        "hardly theirs; the last one: rollout-1 returned 1 of 2 samples; read quarantine.jsonl and the actor's log "
        "under logs/, remove the cause, then go on from the last checkpoint with --resume"
    )


def test_lost_groups_and_failed_tasks_are_counted_apart():
    collected = Collected()
    collected.lose(GroupLost(1, "a", "its node died"), at_most=4)
    collected.lose(TaskFailed(2, "b", "rollout-0 died", "rollout-0"), at_most=4)
    assert dict(collected.outcome_counts) == {"failed": 1, "quarantined": 1}
    assert [outcome.quarantined for outcome in collected.outcomes] == [False, True]
    assert [failed.task_id for failed in collected.quarantined] == ["b"]
