import math

import pytest
from pydantic import ValidationError

from learner.advantages import batch_advantages, group_advantages, has_signal, masks_negatives
from learner.config import LearnerConfig


def test_advantages_are_centred_and_divided_by_the_unbiased_deviation():
    # mean 0.25, squared deviations 3 * 0.0625 + 0.5625 = 0.75, unbiased variance 0.25, deviation 0.5
    advantages = group_advantages([0.0, 0.0, 0.0, 1.0])
    assert advantages == pytest.approx((-0.5, -0.5, -0.5, 1.5), rel=1e-5)


def test_the_epsilon_is_added_to_the_deviation():
    advantages = group_advantages([0.0, 1e-6])  # deviation 0.7071e-6
    assert advantages[1] == pytest.approx(0.5e-6 / (0.70710678e-6 + 1e-6))


def test_unknown_rewards_are_left_out_of_mean_and_deviation():
    advantages = group_advantages([None, 1.0, 0.0, None])
    assert advantages[0] is None
    assert advantages[3] is None
    assert advantages[1] == pytest.approx(0.5 / 0.70710678, rel=1e-5)
    assert advantages[2] == pytest.approx(-0.5 / 0.70710678, rel=1e-5)


def test_a_group_with_equal_rewards_has_zero_advantage():
    assert group_advantages([0.1, 0.1, 0.1, None]) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("rewards", [[], [1.0], [None, None], [None, 0.5]])
def test_a_group_with_fewer_than_two_known_rewards_is_refused(rewards):
    with pytest.raises(ValueError, match="fewer than two are known; leave the group out"):
        group_advantages(rewards)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 1.0], True), ([1.0, 1.0], False), ([None, 1.0, None], False), ([None, 0.0, 0.5], True), ([], False)],
)
def test_signal_needs_two_known_values_that_differ(values, expected):
    assert has_signal(values) is expected


def test_by_task_the_deviation_is_that_of_all_answers_of_the_task_and_the_mean_that_of_the_group():
    # task a: rewards 0 1 1 1, unbiased variance 0.25, deviation 0.5; the other task does not count
    batch = batch_advantages([[0.0, 1.0], [1.0, 1.0], [0.0, 0.4]], ["a", "a", "b"], "task")
    assert batch[0] == pytest.approx((-1.0, 1.0), rel=1e-5)
    assert batch[1] == (0.0, 0.0)
    assert batch[2] == pytest.approx((-0.2 / 0.2828427, 0.2 / 0.2828427), rel=1e-5)


def test_without_a_scale_advantages_are_only_centred():
    assert batch_advantages([[0.0, 1.0, None]], ["a"], "none") == [(-0.5, 0.5, None)]


def test_by_group_they_equal_those_of_each_group_alone():
    rewards = [[0.0, 1.0, 1.0], [None, 0.2, 0.4], [0.0, 0.0]]
    assert batch_advantages(rewards, ["a"] * 3, "group") == [group_advantages(r) for r in rewards]


def test_only_negative_advantages_are_masked_and_unknown_ones_stay_unknown():
    assert batch_advantages([[0.0, 1.0, None]], ["a"], "none", mask_negatives=True) == [(0.0, 0.5, None)]


def test_negative_answers_are_left_out_above_high_and_come_back_below_low():
    masked, found = False, []
    for entropy in (0.4, 0.5, 0.6, 0.4, 0.3, 0.29, 0.4):
        masked = masks_negatives(masked, entropy, high=0.5, low=0.3)
        found.append(masked)
    assert found == [False, False, True, True, True, False, False]


@pytest.mark.parametrize("masked", [True, False])
def test_a_step_without_an_update_has_no_entropy_and_changes_nothing(masked):
    assert masks_negatives(masked, math.nan, high=0.5, low=0.3) is masked


def test_thresholds_of_the_entropy_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="swap them"):
        LearnerConfig.model_validate({"entropy_control": {"high": 0.1, "low": 0.2}})
