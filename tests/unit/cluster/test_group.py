"""A scored group: what the learner trains with is computed once, and unknown answers stay out of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup, assign_advantages
from curriculum.task import TaskLease


@pytest.fixture
def scored(make_group, make_score):
    def build(*accuracies):
        lease = TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0)
        group = make_group(lease, len(accuracies))
        return ScoredGroup(meta=GroupMeta.of(group), scores=tuple(map(make_score, accuracies)), group="reference")

    return build


def advantages(groups, scale, *, mask_negatives=False):
    assign_advantages(groups, scale, mask_negatives=mask_negatives)
    return [group.advantages for group in groups]


def test_by_group_they_are_divided_by_the_deviation_of_the_group(scored):
    # mean 0.25, unbiased deviation 0.5
    (found,) = advantages([scored(1.0, 0.0, 0.0, 0.0)], "group")
    assert found == pytest.approx((1.5, -0.5, -0.5, -0.5), rel=1e-5)


def test_without_a_scale_they_are_only_centred(scored):
    assert advantages([scored(1.0, 0.0, 0.0, 0.0)], "none") == [(0.75, -0.25, -0.25, -0.25)]


def test_by_task_they_are_divided_by_the_deviation_of_the_whole_batch(scored):
    # rewards 1 0 0 0 1 1 1 0: mean 0.5, squared deviations 8 * 0.25 = 2, unbiased variance 2 / 7
    found = advantages([scored(1.0, 0.0, 0.0, 0.0), scored(1.0, 1.0, 1.0, 0.0)], "task")
    deviation = (2 / 7) ** 0.5
    assert found[0] == pytest.approx([a / deviation for a in (0.75, -0.25, -0.25, -0.25)], rel=1e-5)
    assert found[1] == pytest.approx([a / deviation for a in (0.25, 0.25, 0.25, -0.75)], rel=1e-5)


@pytest.mark.parametrize(("scale", "best"), [("group", 1.5), ("task", 1.5), ("none", 0.75)])
def test_masked_negatives_are_zero_whatever_the_scale(scored, scale, best):
    (found,) = advantages([scored(1.0, 0.0, 0.0, 0.0)], scale, mask_negatives=True)
    assert found == pytest.approx((best, 0.0, 0.0, 0.0), rel=1e-5)


def test_an_answer_without_a_known_reward_has_no_advantage_and_is_left_out_of_the_training(scored):
    group = scored(1.0, None, 0.0)
    assert advantages([group], "none") == [(0.5, None, -0.5)]
    item = group.training_item()
    assert (item.group, item.advantages) == ("reference", (0.5, None, -0.5))
    assert (item.prompt_tokens, item.response_tokens) == (10, (3, 3))


def test_truncated_answers_are_left_out_but_their_rewards_count(scored):
    group = scored(1.0, 0.0, 0.0, 0.0)
    group.meta = replace(group.meta, truncated=(False, False, True, True))
    assign_advantages([group], "none", mask_negatives=False, mask_truncated=True)
    assert group.advantages == (0.75, -0.25, None, None)  # the mean is that of all four
    assert group.training_item().response_tokens == (3, 3)
    assert advantages([group], "none") == [(0.75, -0.25, -0.25, -0.25)]


def test_a_group_of_truncated_and_unknown_answers_cannot_be_trained_on_where_those_are_left_out(scored):
    group = scored(1.0, 0.0, None)
    group.meta = replace(group.meta, truncated=(True, True, False))
    assert group.trainable(dynamic_sampling=True)
    assert not group.trainable(dynamic_sampling=True, mask_truncated=True)
    group.meta = replace(group.meta, truncated=(True, False, False))
    assert group.trainable(dynamic_sampling=True, mask_truncated=True)


def test_a_group_with_one_known_reward_must_not_reach_the_learner(scored):
    with pytest.raises(ValueError, match="fewer than two are known"):
        advantages([scored(1.0, None)], "group")


def test_a_group_has_no_advantages_before_it_is_trained_on(scored):
    assert scored(1.0, 0.0).advantages is None
