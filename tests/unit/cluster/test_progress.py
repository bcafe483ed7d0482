"""Progress survives a checkpoint, and counts what a stage did."""

from __future__ import annotations

import json

import pytest

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup
from cluster.run.heldout_statistics import Evaluation
from cluster.run.progress import Progress, StageProgress
from curriculum.seal import OtherVersion
from curriculum.task import TaskLease
from reward.score import Score, Verdict
from tests.harness.heldout import a_cell


def evaluation(accuracy):
    cell = a_cell(accuracy, low=accuracy - 0.1, high=accuracy + 0.1)
    cells = {"heldout/accuracy": cell, "heldout/accuracy/short": cell}
    return Evaluation(step=5, num_samples=2, metrics={"heldout/accuracy": accuracy}, cells=cells)


def score(*, rule=0.0, judge=None, accuracy=None):
    return Score(answer="a", rule=rule, judge=judge, accuracy=accuracy, reward=accuracy, reason="test")


def batch_group(*scores, replayed=False):
    meta = GroupMeta(
        lease=TaskLease(lease_id=0, task_id="t", attempt=0, replayed=replayed, phase=0),
        data_source="test",
        prompt_tokens=5,
        response_tokens=(3,) * len(scores),
        truncated=(False,) * len(scores),
        policy_version=0,
        num_bytes=0,
    )
    return ScoredGroup(meta=meta, scores=scores, group=None)


def test_progress_reads_back_from_json_as_it_was():
    progress = Progress(
        step=7,
        policy_version=3,
        finished_stages=[StageProgress(name="sft", kind="sft", steps=5, heldout=evaluation(0.5))],
        stage=StageProgress(name="short", kind="rl", steps=2, groups_sampled=8, groups_replayed=2),
        base_heldout=evaluation(0.1),
        heldout=evaluation(0.5),
        negatives_masked=True,
    )
    assert Progress.from_state_dict(json.loads(json.dumps(progress.state_dict()))) == progress


def test_a_beginning_reads_back_as_well():
    assert Progress.from_state_dict(json.loads(json.dumps(Progress().state_dict()))) == Progress()


def test_a_checkpoint_of_another_version_is_refused_by_name():
    state = Progress().state_dict()
    del state["base_heldout"]
    with pytest.raises(OtherVersion, match=r"checkpoint has no base_heldout: another version .* start a new run"):
        Progress.from_state_dict(state)


def test_the_optimizer_belongs_to_the_reinforcement_learning_from_its_first_stage_on():
    sft, rl = StageProgress(name="sft", kind="sft"), StageProgress(name="short", kind="rl")
    assert Progress().learner_stage == "sft"
    assert Progress(finished_stages=[sft]).learner_stage == "sft"
    assert Progress(finished_stages=[sft], stage=rl).learner_stage == "rl"
    assert Progress(finished_stages=[sft, rl]).learner_stage == "rl", "between two phases"


def test_what_a_stage_came_to_is_compared_with_the_one_before_it_and_at_first_with_the_base_model():
    base, after_sft = evaluation(0.1), evaluation(0.4)
    stages = [
        StageProgress(name="sft", kind="sft", heldout=after_sft),
        StageProgress(name="short", kind="rl", heldout=evaluation(0.5)),
    ]
    measured = Progress(base_heldout=base, finished_stages=stages).measured
    assert measured == [("sft", base, after_sft), ("short", after_sft, evaluation(0.5))]
    assert Progress(finished_stages=[StageProgress(name="sft", kind="sft")]).measured == [("sft", None, None)]


def test_a_stage_counts_groups_judge_calls_saves_and_unknown_rewards():
    stage = StageProgress(name="short", kind="rl")
    saved = score(judge=Verdict.YES, accuracy=1.0)
    refused = score(judge=Verdict.NO, accuracy=0.0)
    unknown = score(judge=Verdict.UNKNOWN)
    stage.count([batch_group(saved, refused), batch_group(unknown, score(rule=1.0, accuracy=1.0), replayed=True)], 1)
    stage.count([batch_group(refused, refused)], 0)
    assert (stage.groups_sampled, stage.groups_trained, stage.groups_replayed) == (3, 1, 1)
    assert (stage.judge_calls, stage.judge_saves, stage.unknown_rewards) == (5, 1, 1)
    assert stage.fruitless_steps == 1
    assert stage.replayed_share == 1 / 3


def test_a_stage_without_groups_has_replayed_nothing():
    assert StageProgress(name="sft", kind="sft").replayed_share == 0.0
