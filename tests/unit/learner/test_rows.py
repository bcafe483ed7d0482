import dataclasses

import numpy as np
import pytest

from actors.trajectory import FinishReason, Group, Trajectory, VersionSpan
from curriculum.task import Demonstration, Task, TaskLease
from learner.batch.aggregation import RESPONSE_MEAN, TOKEN_MEAN
from learner.batch.microbatch import PrefixSegment, TrainingGroup
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch, demonstration_group


def _group(prompt, responses, advantages, temperature=0.7):
    return TrainingGroup(
        prompt_ids=np.array(prompt, np.int32),
        response_ids=tuple(np.array(ids, np.int32) for ids in responses),
        rollout_logprobs=tuple(-np.arange(1, len(ids) + 1, dtype=np.float32) for ids in responses),
        advantages=advantages,
        temperature=temperature,
    )


def _plan(*parts):
    return RowPlan(responses=dict(parts))


def test_a_row_holds_each_prompt_once_and_every_response_continues_at_its_end():
    groups = {3: _group([1, 2, 3], [[4, 5], [6]], (1.0, -1.0)), 5: _group([7], [[8, 9]], (0.5,), temperature=1.0)}
    row = build_microbatch(_plan((3, (0, 1)), (5, (0,))), groups, num_groups=2, aggregation=TOKEN_MEAN)
    assert row.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert row.segments == (
        PrefixSegment(start=0, prompt_tokens=3, response_tokens=(2, 1)),
        PrefixSegment(start=6, prompt_tokens=1, response_tokens=(2,)),
    )
    assert row.labels.tolist() == [4, 5, 6, 8, 9]
    assert row.predictors.tolist() == [2, 3, 2, 6, 7]  # the last prompt token predicts every first response token
    assert row.advantages.tolist() == [1.0, 1.0, -1.0, 0.5, 0.5]
    assert row.rollout_logprobs.tolist() == [-1.0, -2.0, -1.0, -1.0, -2.0]
    assert row.temperature.tolist() == pytest.approx([0.7, 0.7, 0.7, 1.0, 1.0])
    assert row.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])


def test_a_part_of_a_group_keeps_the_weights_of_the_whole_group():
    group = _group([1], [[2], [3, 4], [5]], (1.0, 2.0, 3.0))
    row = build_microbatch(_plan((0, (1,))), {0: group}, num_groups=1, aggregation=RESPONSE_MEAN)
    assert row.weights.tolist() == pytest.approx([1 / 6, 1 / 6])
    assert row.advantages.tolist() == [2.0, 2.0]


def test_a_placeholder_row_weighs_nothing():
    row = build_microbatch(_plan(), {}, num_groups=4, aggregation=RESPONSE_MEAN)
    assert row.input_ids.tolist() == [0, 0]
    assert row.weights.tolist() == [0.0]


def test_a_demonstration_is_a_group_of_one_with_length_normalised_weight():
    demonstration = Demonstration(
        demonstration_id="d", prompt_ids=np.array([1, 2], np.int32), response_ids=np.array([3, 4, 5, 6], np.int32)
    )
    groups = {0: demonstration_group(demonstration)}
    row = build_microbatch(_plan((0, (0,))), groups, num_groups=2, aggregation=TOKEN_MEAN)
    assert row.weights.tolist() == [0.125] * 4
    assert row.temperature.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout_logprobs": (np.zeros(1, np.float32),)}, "2 tokens but 1 rollout log-probabilities"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_a_group_that_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_group([1], [[2, 3]], (1.0,)), **change)


def test_a_row_in_batches_has_its_prompts_first():
    groups = {0: _group([1, 2, 3], [[4, 5], [6]], (1.0, -1.0)), 1: _group([7], [[8, 9]], (0.5,))}
    plan = RowPlan(responses={0: (0, 1), 1: (0,)}, batches=({0: (1,)}, {1: (0,), 0: (0,)}))
    row = build_microbatch(plan, groups, num_groups=2, aggregation=TOKEN_MEAN)
    assert row.input_ids.tolist() == [1, 2, 3, 7, 6, 4, 5, 8, 9]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 3, 3, 4, 1, 2]
    assert [(s.start, s.prompt_tokens, s.response_tokens) for s in row.segments] == [(0, 3, ()), (3, 1, ())]
    assert row.batches == (((1,), ()), ((2,), (2,)))
    assert row.labels.tolist() == [6, 4, 5, 8, 9]
    assert row.predictors.tolist() == [2, 2, 5, 3, 7]
    assert row.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])
    assert row.answers.tolist() == [0, 1, 1, 2, 2]


def test_answers_without_an_advantage_are_left_out_and_no_array_is_copied():
    task = Task(
        task_id="t", data_source="test", question="?", answers=("a",), prompt_ids=np.array([1, 2], np.int32), phase=0
    )
    lease = TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0)
    trajectories = tuple(
        Trajectory(
            response_ids=np.full(length, 7, np.int32),
            rollout_logprobs=np.full(length, -0.5, np.float32),
            finish_reason=FinishReason.STOP,
            versions=(VersionSpan(start=0, version=0),),
        )
        for length in (3, 2, 4)
    )
    group = Group(
        task=task,
        lease=lease,
        trajectories=trajectories,
        temperature=0.7,
        max_response_tokens=10,
        engine="e",
        top_p=0.9,
    )
    training = TrainingGroup.of(group, (0.75, None, -0.25))
    assert (training.prompt_tokens, training.response_tokens, training.advantages) == (2, (3, 4), (0.75, -0.25))
    assert (training.temperature, training.top_p) == (0.7, 0.9)
    assert training.prompt_ids is task.prompt_ids
    assert training.response_ids[1] is trajectories[2].response_ids
    assert training.rollout_logprobs[1] is trajectories[2].rollout_logprobs


def test_a_group_with_mismatched_columns_is_refused():
    with pytest.raises(ValueError, match="give equally many"):
        _group([1], [[2], [3]], (1.0,))
