import pytest

from evaluation.statistics import bootstrap_macro, bootstrap_mean, mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (4, 2, 2, 5 / 6),  # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (4, 3, 2, 1.0),
        (16, 1, 8, 1 / 2),
        (16, 1, 16, 1.0),
        (16, 0, 16, 0.0),
        (8, 2, 4, 11 / 14),  # 1 - C(6,4)/C(8,4) = 1 - 15/70
    ],
)
def test_pass_at_k_equals_the_count_by_hand(num_samples, num_correct, k, expected):
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 1, 5), (4, 5, 2), (4, -1, 2), (4, 1, 0)])
def test_pass_at_k_of_impossible_counts_is_refused(num_samples, num_correct, k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(num_samples, num_correct, k)


def test_mean_pass_at_k_averages_items():
    assert mean_pass_at_k([(4, 1), (4, 3)], 2) == pytest.approx((1 / 2 + 1) / 2)


def test_pass_at_k_is_left_out_where_an_item_has_too_few_samples():
    assert mean_pass_at_k([(4, 1), (2, 2)], 4) is None
    assert mean_pass_at_k([], 1) is None


def test_the_interval_of_equal_values_has_no_width():
    estimate = bootstrap_mean([0.5] * 10, seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_interval_agrees_with_the_normal_approximation():
    estimate = bootstrap_mean([1.0] * 100 + [0.0] * 100, seed=0)
    half = 1.96 * (0.25 / 200) ** 0.5
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - half, abs=0.01)
    assert estimate.high == pytest.approx(0.5 + half, abs=0.01)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another_one():
    values = [0.0, 0.25, 1.0, 0.5, 0.75, 0.1]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_the_macro_average_weighs_benchmarks_equally_whatever_their_size():
    estimate = bootstrap_macro([[1.0], [0.0] * 99], seed=0)
    assert estimate.mean == 0.5
    assert (estimate.low, estimate.high) == (0.5, 0.5)


def test_a_benchmark_without_items_has_no_accuracy():
    with pytest.raises(ValueError, match="without items"):
        bootstrap_macro([[1.0], []], seed=0)
