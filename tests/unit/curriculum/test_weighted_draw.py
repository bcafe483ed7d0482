"""Positions in weights that are laid end to end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.weighted_draw import FAN_OUT, WeightedDraw


def weights(*values):
    return WeightedDraw(np.array(values, np.int64))


def test_a_position_falls_into_the_weight_that_covers_it():
    draw = weights(2, 0, 3)
    assert draw.total == 5
    assert [draw.find(position) for position in range(5)] == [0, 0, 2, 2, 2]


def test_a_weight_that_changes_moves_those_behind_it():
    draw = weights(2, 0, 3)
    draw.set(0, 1)
    draw.set(1, 4)
    assert draw.total == 8
    assert [draw.find(position) for position in range(8)] == [0, 1, 1, 1, 1, 2, 2, 2]


def test_no_weights_have_a_total_of_zero():
    assert weights().total == 0


@settings(deadline=None)
@given(st.sampled_from([1, FAN_OUT, FAN_OUT + 1, 3 * FAN_OUT + 7, FAN_OUT**2 + 5]), st.integers(0, 2**32), st.data())
def test_several_levels_find_what_one_sum_finds_whatever_changed_before(size, seed, data):
    rng = np.random.default_rng(seed)
    plain_N = rng.integers(0, 2**35, size)
    draw = WeightedDraw(plain_N.copy())
    for row in data.draw(st.lists(st.integers(0, size - 1), max_size=5)):
        plain_N[row] = rng.integers(0, 2**35)
        draw.set(row, int(plain_N[row]))
    ends = np.cumsum(plain_N)
    assert draw.total == ends[-1]
    for position in rng.integers(0, max(1, draw.total), 20):
        assert draw.find(int(position)) == np.searchsorted(ends, position, side="right")


@pytest.mark.parametrize("size", [10_000_000])
def test_the_sum_of_ten_million_of_the_largest_weights_is_exact(size):
    draw = WeightedDraw(np.full(size, 8 * 2**32, np.int64))
    assert draw.total == size * 8 * 2**32
    assert draw.find(draw.total - 1) == size - 1
