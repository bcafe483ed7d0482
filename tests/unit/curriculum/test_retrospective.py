import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.retrospective import RetrospectivePool, draw_pool

ACCURACIES = {"never": None, "zero": 0.0, "nil": 0.0, "half": 0.5, "solved": 1.0}


def draw(accuracies, selection, *, max_pool_size=10, seed=0, phase=1, epsilon=0.125):
    return draw_pool(
        accuracies, selection=selection, epsilon=epsilon, max_pool_size=max_pool_size, seed=seed, phase=phase
    )


def test_the_papers_pool_holds_the_tasks_whose_mean_accuracy_is_zero():
    num_candidates, members = draw(ACCURACIES, "zero_accuracy")
    assert num_candidates == 2
    assert set(members) == {"zero", "nil"}


def test_the_weighted_pool_holds_the_tasks_that_are_not_solved():
    num_candidates, members = draw(ACCURACIES, "difficulty")
    assert num_candidates == 3
    assert set(members) == {"zero", "nil", "half"}


def test_without_candidates_the_pool_is_empty():
    assert draw({"a": 1.0, "b": None}, "zero_accuracy") == (0, ())
    assert draw({}, "difficulty") == (0, ())


def test_the_pool_is_bounded_and_says_how_many_qualified():
    num_candidates, members = draw({str(index): 0.0 for index in range(9)}, "zero_accuracy", max_pool_size=4)
    assert num_candidates == 9
    assert len(set(members)) == 4


def test_the_weighted_draw_prefers_hard_tasks_in_proportion_to_their_difficulty():
    # weights 1/(0+.25)=4 and 1/(.75+.25)=1: one of one goes to the hard task four times in five
    picks = [
        draw({"hard": 0.0, "easy": 0.75}, "difficulty", max_pool_size=1, seed=s, epsilon=0.25)[1] for s in range(4000)
    ]
    assert picks.count(("hard",)) / 4000 == pytest.approx(0.8, abs=0.03)


def test_the_draw_repeats_with_its_seed_and_differs_between_seeds():
    many = {str(index): 0.0 for index in range(30)}
    assert draw(many, "zero_accuracy", seed=5) == draw(many, "zero_accuracy", seed=5)
    assert draw(many, "zero_accuracy", seed=5) != draw(many, "zero_accuracy", seed=6)


def pool_of(*members, epsilon=None, seed=0):
    return RetrospectivePool(members, epsilon=epsilon, seed=seed, phase=1)


def test_each_member_is_served_once_per_pass():
    pool, accuracies = pool_of("a", "b", "c", "d"), dict.fromkeys("abcd", 0.0)
    served = [task_id for _ in range(4) for task_id in pool.draw(2, accuracies.get)]
    assert sorted(served[:4]) == sorted(served[4:]) == ["a", "b", "c", "d"]


def test_a_draw_never_holds_a_member_twice():
    pool, accuracies = pool_of("a", "b", "c"), dict.fromkeys("abc", 0.0)
    for _ in range(20):
        drawn = pool.draw(2, accuracies.get)
        assert len(set(drawn)) == 2
    assert sorted(pool.draw(5, accuracies.get)) == ["a", "b", "c"]


def test_a_solved_member_leaves_one_that_begins_to_succeed_stays_and_a_relapse_returns():
    pool, accuracies = pool_of("a", "b"), {"a": 0.0, "b": 0.0}
    accuracies.update(a=1.0, b=0.5)
    assert pool.draw(2, accuracies.get) == ["b"]
    assert pool.num_live(accuracies.get) == 1
    accuracies.update(a=0.75)
    assert sorted(pool.draw(2, accuracies.get)) == ["a", "b"]


def test_an_empty_pool_serves_nothing():
    assert pool_of().draw(3, lambda _: None) == []


def test_the_hardest_members_tend_to_be_served_first():
    accuracies = {"hard": 0.0, "easy": 0.75}
    firsts = [pool_of("hard", "easy", epsilon=0.25, seed=seed).draw(1, accuracies.get)[0] for seed in range(2000)]
    assert firsts.count("hard") / 2000 == pytest.approx(0.8, abs=0.04)


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), max_size=20),
    st.integers(0, 20),
)
def test_a_pool_restored_from_json_serves_the_same_members(num_members, calls, stop):
    ids = [str(index) for index in range(num_members)]
    accuracies = dict.fromkeys(ids, 0.0)
    whole, parts = pool_of(*ids, epsilon=0.1), pool_of(*ids, epsilon=0.1)
    for call, (size, changed, accuracy) in enumerate(calls):
        if call == stop:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = pool_of(epsilon=0.1)
            parts.load_state_dict(state)
        drawn = whole.draw(size, accuracies.get)
        live = [task_id for task_id in ids if accuracies[task_id] < 1.0]
        assert parts.draw(size, accuracies.get) == drawn
        assert len(drawn) == len(set(drawn)) == min(size, len(live))
        assert set(drawn) <= set(live)
        accuracies[str(changed)] = accuracy
