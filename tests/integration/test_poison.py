"""Three poison tasks: the engine dies of one, cannot take the next, and the judge dies of the last; the run goes on."""

from __future__ import annotations

import sys

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_RL_STEPS = 24, 10  # 24 as in conftest.py; ten steps of four are two passes over 16 tasks and more
KILLS_ENGINE, REFUSED, KILLS_JUDGE = "train-short-000003", "train-short-000007", "train-short-000011"
PATCH = f"""
import os, sys
if any(part.endswith("default_worker.py") for part in sys.orig_argv):
    import actors.worker, reward.judge_actor
    sample, score = actors.worker.sample_group, reward.judge_actor.JudgeActor.score_group

    async def sample_group(engine, task, *arguments, **options):
        if task.task_id == {KILLS_ENGINE!r}:
            os._exit(1)
        if task.task_id == {REFUSED!r}:
            raise ValueError("the prompt is longer than the model takes")
        return await sample(engine, task, *arguments, **options)

    async def score_group(self, group):
        if group.task.task_id == {KILLS_JUDGE!r}:
            os._exit(1)
        return await score(self, group)

    actors.worker.sample_group, reward.judge_actor.JudgeActor.score_group = sample_group, score_group
"""
"""Python runs it at the start of every process that finds it on its path."""


@pytest.fixture(scope="module")
def run(workshop):
    patch = workshop.folder / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(PATCH)
    run = workshop.new_run("poisoned")
    short, _ = workshop.overrides["curriculum.phases"]
    recipe = workshop.recipe(
        curriculum__phases=[{**short, "max_prompt_tokens": 160, "end": {"type": "steps", "steps": NUM_RL_STEPS}}],
        data__over_long="drop",
        data__evaluation=None,
    )
    path = f"{patch}:{workshop.environment['PYTHONPATH']}"
    arguments = ("train", *recipe, "--run-dir", run.folder)
    run.finish(workshop.run(sys.executable, "-m", "cluster.cli", *arguments, PYTHONPATH=path))
    return run


def test_the_run_ends_well(run):
    assert run.exit_statuses == [0], run.output[-4000:]
    assert run.summary["steps"] == NUM_SFT_STEPS + NUM_RL_STEPS
    assert "note: 3 tasks are in quarantine" in run.output


def test_each_poison_task_is_named_once_with_its_reason(run):
    reasons = {line["task_id"]: line["reason"] for line in run.lines("quarantine.jsonl")}
    assert len(run.lines("quarantine.jsonl")) == 3
    assert reasons == {
        KILLS_ENGINE: "rollout-0 died while it answered it, as an engine did before",
        REFUSED: "rollout-0 raised ValueError: the prompt is longer than the model takes, as engines did every time "
        "before",
        KILLS_JUDGE: "judge-0 died, 2 times, at last with nothing else to do",
    }
    assert run.summary["quarantine"].keys() == reasons.keys()
    assert run.metrics[-1]["rollout/quarantined_tasks"] == 3


def test_they_leave_the_budget_of_the_actors_and_the_other_tasks_alone(run):
    deaths = [event["actor"] for event in run.events("fault") if event["action"] == "restarting"]
    assert deaths.count("judge-0") == 2
    assert 2 <= deaths.count("rollout-0") <= 3
    rows = [row for path in (run.folder / "trajectories").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    answered = {row["prompt_id"] for row in rows}
    assert len(answered) > 16
    assert not answered & {KILLS_ENGINE, REFUSED, KILLS_JUDGE}


def test_the_ledger_balances(run):
    ledger = run.summary["ledger"]
    assert (ledger["quarantined"], ledger["failed"], ledger["imbalance"]) == (3, 0, None)
