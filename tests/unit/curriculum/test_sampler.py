import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.sampler import FreshSampler, spread_slots, weighted_order


def test_every_task_is_drawn_once_per_pass():
    sampler = FreshSampler(["a", "b", "c", "d", "e"], seed=0, phase=0)
    drawn = [task_id for size in (3, 3, 3, 3, 3) for task_id in sampler.draw(size)]
    for start in (0, 5, 10):
        assert sorted(drawn[start : start + 5]) == ["a", "b", "c", "d", "e"]
    assert sampler.epochs == 3.0


def test_passes_phases_and_seeds_have_different_orders():
    ids = [str(index) for index in range(20)]
    sampler = FreshSampler(ids, seed=0, phase=0)
    first, second = sampler.draw(20), sampler.draw(20)
    other_phase = FreshSampler(ids, seed=0, phase=1).draw(20)
    other_seed = FreshSampler(ids, seed=1, phase=0).draw(20)
    assert len({tuple(order) for order in (first, second, other_phase, other_seed)}) == 4


@given(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 8), st.integers(0, 2**31))
def test_no_task_is_ever_more_than_one_draw_ahead_and_a_restored_sampler_agrees(num_tasks, sizes, stop, seed):
    ids = [str(index) for index in range(num_tasks)]
    whole, parts = FreshSampler(ids, seed=seed, phase=0), FreshSampler(ids, seed=seed, phase=0)
    counts = Counter(dict.fromkeys(ids, 0))
    for call, size in enumerate(sizes):
        if call == stop:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = FreshSampler(ids, seed=seed, phase=0)
            parts.load_state_dict(state)
        drawn = whole.draw(size)
        assert parts.draw(size) == drawn
        counts.update(drawn)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_weighted_order_is_a_permutation_and_repeats_with_its_seed():
    weights = [1.0, 5.0, 2.0, 0.5]
    first = weighted_order(weights, np.random.default_rng(3))
    assert sorted(first) == [0, 1, 2, 3]
    assert weighted_order(weights, np.random.default_rng(3)) == first
    assert weighted_order([], np.random.default_rng(3)) == []


def test_the_first_and_second_place_follow_the_law_of_draws_without_replacement():
    rng = np.random.default_rng(0)
    orders = [weighted_order([1.0, 2.0, 5.0], rng)[:2] for _ in range(20_000)]
    first = Counter(order[0] for order in orders)
    pair = Counter(tuple(order) for order in orders)
    assert first[2] / 20_000 == pytest.approx(5 / 8, abs=0.015)
    assert first[0] / 20_000 == pytest.approx(1 / 8, abs=0.015)
    assert pair[(2, 1)] / 20_000 == pytest.approx(5 / 8 * 2 / 3, abs=0.015)


def test_a_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        weighted_order([1.0, 0.0], np.random.default_rng(0))


def test_marks_are_spread_over_the_slots():
    assert spread_slots(8, 2) == [False, False, False, True, False, False, False, True]
    assert spread_slots(3, 0) == [False, False, False]
    assert spread_slots(2, 2) == [True, True]
    with pytest.raises(ValueError, match="3 of 2"):
        spread_slots(2, 3)


@given(st.integers(1, 64), st.data())
def test_no_stretch_of_slots_holds_more_than_its_share_of_marks_plus_one(num_slots, data):
    num_marked = data.draw(st.integers(0, num_slots))
    marks = spread_slots(num_slots, num_marked)
    assert sum(marks) == num_marked
    for stop in range(num_slots + 1):
        assert sum(marks[:stop]) <= stop * num_marked / num_slots
        assert sum(marks[:stop]) > stop * num_marked / num_slots - 1
