import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.sampler import FreshSampler, FreshTasks, spread_slots


def draw(sampler, num_tasks, **unavailable):
    return [sampler.draw(**unavailable) for _ in range(num_tasks)]


def test_every_task_is_drawn_once_per_pass():
    sampler = FreshSampler(["a", "b", "c", "d", "e"], seed=0, phase=0)
    drawn = draw(sampler, 15)
    for start in (0, 5, 10):
        assert sorted(drawn[start : start + 5]) == ["a", "b", "c", "d", "e"]
    assert sampler.num_drawn == 15


def test_passes_phases_sources_and_seeds_have_different_orders():
    ids = [str(index) for index in range(20)]
    sampler = FreshSampler(ids, seed=0, phase=0)
    first, second = draw(sampler, 20), draw(sampler, 20)
    others = [
        draw(FreshSampler(ids, seed=seed, phase=phase, source=source), 20)
        for seed, phase, source in ((0, 1, None), (1, 0, None), (0, 0, 0), (0, 0, 1))
    ]
    assert len({tuple(order) for order in (first, second, *others)}) == 6


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
        drawn = draw(whole, size)
        assert draw(parts, size) == drawn
        counts.update(drawn)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_task_that_is_taken_keeps_its_turn_and_comes_first_once_it_is_free():
    order = draw(FreshSampler(["a", "b", "c", "d"], seed=0, phase=0), 4)
    sampler = FreshSampler(["a", "b", "c", "d"], seed=0, phase=0)
    assert draw(sampler, 2, taken=order[:1]) == order[1:3]
    assert sampler.num_drawn == 2, "a turn that is owed has not been used"
    assert draw(sampler, 2) == [order[0], order[3]]


def test_at_the_end_of_a_pass_the_next_one_begins_with_those_that_are_free():
    sampler = FreshSampler(["a", "b", "c", "d"], seed=0, phase=0)
    batch = draw(sampler, 3)
    (last,) = {"a", "b", "c", "d"} - set(batch)
    assert sampler.draw(taken=batch) == last
    assert sampler.draw(taken=[*batch, last]) is None
    assert sampler.draw(taken=[last, *batch[:2]]) == batch[2]
    assert sampler.num_drawn == 5


def test_all_taken_leaves_the_sampler_as_it_was():
    sampler = FreshSampler(["a", "b"], seed=0, phase=0)
    before = sampler.state_dict()
    assert sampler.draw(taken=["a", "b"]) is None
    assert sampler.state_dict() == before


def test_a_task_that_is_gone_loses_its_turn_even_one_that_is_owed():
    order = draw(FreshSampler(["a", "b", "c"], seed=0, phase=0), 3)
    sampler = FreshSampler(["a", "b", "c"], seed=0, phase=0)
    assert sampler.draw(taken=order[:1]) == order[1]
    assert sampler.draw(gone=order[:1]) == order[2]
    assert sampler.num_drawn == 3, "the pass ends as with the task"


@given(st.lists(st.sets(st.sampled_from("abcdef"), max_size=6), max_size=40), st.integers(0, 40))
def test_every_turn_is_used_or_owed_and_a_restored_sampler_agrees(taken_sets, stop):
    whole, parts = (FreshSampler("abcdef", seed=3, phase=0) for _ in range(2))
    num_drawn = 0
    for call, taken in enumerate(taken_sets):
        if call == stop:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = FreshSampler("abcdef", seed=3, phase=0)
            parts.load_state_dict(state)
        task_id = whole.draw(taken=taken)
        assert parts.draw(taken=taken) == task_id
        assert (task_id is None) == (len(taken) == 6)
        assert task_id not in taken
        num_drawn += task_id is not None
        assert whole.num_drawn == num_drawn


# ---- sources in turn


def test_sources_are_drawn_from_in_turn_each_in_passes_of_its_own():
    tasks = FreshTasks([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]], seed=0, phase=0)
    drawn = draw(tasks, 9)
    assert [task_id[0] for task_id in drawn] == list("abcabcabc")
    assert sorted(drawn[0::3]) == ["a1", "a2", "a3"]
    assert drawn[1::3] == ["b1"] * 3
    assert sorted(drawn[2:8:3]) == ["c1", "c2"]
    assert tasks.num_drawn == 9


def test_a_source_without_a_free_task_is_passed_over_and_catches_up():
    tasks = FreshTasks([["a1", "a2"], ["b1"]], seed=0, phase=0)
    first = draw(tasks, 2)
    assert first[1] == "b1"
    # counts 1 and 1; b is taken: a is drawn twice, counts 3 and 1; free again, b is drawn until it has caught up
    assert [task_id[0] for task_id in draw(tasks, 2, taken=["b1"])] == ["a", "a"]
    assert [task_id[0] for task_id in draw(tasks, 5)] == ["b", "b", "a", "b", "a"]


def test_a_source_that_is_gone_leaves_its_share_to_the_others():
    tasks = FreshTasks([["a1"], ["b1"], ["c1"]], seed=0, phase=0)
    assert draw(tasks, 4, gone=["b1"]) == ["a1", "c1", "a1", "c1"]
    assert tasks.draw(gone=["a1", "b1", "c1"]) is None


def test_one_source_is_drawn_from_as_without_sources():
    ids = [str(index) for index in range(20)]
    assert draw(FreshTasks([ids], seed=4, phase=1), 50) == draw(FreshSampler(ids, seed=4, phase=1), 50)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 60), st.integers(0, 60))
def test_shares_of_sources_differ_by_at_most_one_and_a_resume_changes_nothing(sizes, num_draws, stop):
    sources = [[f"{source}-{index}" for index in range(size)] for source, size in enumerate(sizes)]
    whole, parts = (FreshTasks(sources, seed=1, phase=0) for _ in range(2))
    counts = Counter(dict.fromkeys(range(len(sizes)), 0))
    for call in range(num_draws):
        if call == stop:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = FreshTasks(sources, seed=1, phase=0)
            parts.load_state_dict(state)
        task_id = whole.draw()
        assert parts.draw() == task_id
        counts[int(task_id.partition("-")[0])] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


# ---- the mix of a batch


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
