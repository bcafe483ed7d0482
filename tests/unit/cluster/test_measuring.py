"""Groups that are sampled only to learn how hard tasks are: when, under which weights, and after a stop."""

from __future__ import annotations

import asyncio
import json

import pytest

from cluster.run.progress import Progress
from cluster.run.stopping import Interrupted

PHASES = [
    {"name": "short", "max_prompt_tokens": 15, "end": {"type": "steps", "steps": 2}, "max_response_tokens": 7},
    {"name": "long", "max_prompt_tokens": 25, "end": {"type": "steps", "steps": 2}, "max_response_tokens": 9},
]


def replay(difficulty):
    return {"retrospective": {"selection": "difficulty", "difficulty": difficulty, "max_share": 0.25}}


def mixed(lease):
    return [1.0, 0.0]


def events(b, kind):
    lines = (b.folder.path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_the_base_model_is_measured_before_the_warm_up_on_all_phases_but_the_last(bench):
    b = bench(accuracies=mixed, phases=PHASES, curriculum=replay("base"), demonstrations=2)
    calls = b.run()
    assert calls[:5] == ["measure 4", "measure 4", "measure 4", "stage sft", "sft 2"]
    assert calls.count("measure 4") == 3
    assert sorted(task_id for task_id, _ in b.rollouts.measured) == sorted(f"short-{i}" for i in range(12))
    assert {sampling.max_response_tokens for _, sampling in b.rollouts.measured} == {7}
    assert {sampling.num_samples for _, sampling in b.rollouts.measured} == {2}


def test_a_transition_measures_the_earlier_tasks_under_the_weights_of_that_moment(bench):
    b = bench(accuracies=mixed, phases=PHASES, curriculum=replay("transition"))
    calls = b.run()
    first = calls.index("measure 4")
    assert calls[first - 1 : first + 4] == ["save", "measure 4", "measure 4", "measure 4", "open 4"]
    assert "deliver 2" in calls[:first], "the weights of the last step of the phase are in the engines"
    assert {sampling.max_response_tokens for _, sampling in b.rollouts.measured} == {9}, "as the new phase samples"
    (event,) = events(b, "measured")
    assert (event["tasks"], event["scored"], event["solved"], event["accuracy"]) == (12, 12, 0, 0.5)


def test_tasks_that_turn_out_to_be_solved_are_not_replayed(bench):
    def solved_since(lease):
        is_solved = lease.task_id.startswith("short") and lease.task_id != "short-3" and b.rollouts.measured
        return [1.0, 1.0] if is_solved else [1.0, 0.0]

    b = bench(accuracies=solved_since, phases=PHASES, curriculum=replay("transition"))
    b.run()
    replayed = {group.task_id for batch in b.learner.groups for group in batch if group.meta.lease.replayed}
    assert replayed == {"short-3"}


def test_by_the_latest_visit_nothing_is_sampled_but_batches(bench):
    b = bench(accuracies=mixed, phases=PHASES, curriculum=replay("latest"))
    assert not [call for call in b.run() if call.startswith("measure")]


def test_a_stop_while_difficulty_is_measured_is_resumed_with_what_is_left(bench):
    whole = bench(name="whole", accuracies=mixed, phases=PHASES, curriculum=replay("transition"))
    whole.run()
    b = bench(name="stopped", accuracies=mixed, phases=PHASES, curriculum=replay("transition"))

    async def block_the_second_batch():
        if b.calls.count("measure 4") == 2:
            b.stop.set()
            await asyncio.Event().wait()

    b.rollouts.measure = block_the_second_batch
    with pytest.raises(Interrupted):
        b.run()
    saved = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    assert len(saved["curriculum"]["to_measure"]) == 8

    resumed = bench(name="resumed", accuracies=mixed, phases=PHASES, curriculum=replay("transition"))
    resumed.coordinator.load_state_dict(saved["curriculum"])
    resumed.progress = Progress.from_state_dict(saved["progress"])
    resumed.rollouts.policy_version = resumed.progress.policy_version
    assert resumed.run()[:3] == ["measure 4", "measure 4", "open 4"]
    assert resumed.learner.batches == whole.learner.batches[2:]


def test_how_far_it_is_is_said(bench, capsys):
    b = bench(accuracies=mixed, phases=PHASES, curriculum=replay("transition"))
    b.quiet = False
    b.run()
    told = capsys.readouterr().err
    assert "measuring how hard 12 tasks are, one group each: 0 done" in told
    assert "measured 12 of 12 tasks: 0 are solved, 0 have no success" in told
