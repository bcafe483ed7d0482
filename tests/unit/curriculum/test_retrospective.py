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


class Bench:
    """A pool and the accuracies it looks at; members start unsolved."""

    def __init__(self, *members, epsilon=None, seed=0, accuracies=None):
        self.accuracies = accuracies if accuracies is not None else dict.fromkeys(members, 0.0)
        self.pool = RetrospectivePool(members, accuracy_of=self.accuracies.get, epsilon=epsilon, seed=seed, phase=1)

    def visit(self, **accuracies):
        self.accuracies.update(accuracies)
        for task_id in accuracies:
            self.pool.refresh(task_id)


def test_each_member_is_served_once_per_pass():
    pool = Bench("a", "b", "c", "d").pool
    served = [task_id for _ in range(4) for task_id in pool.draw(2)]
    assert sorted(served[:4]) == sorted(served[4:]) == ["a", "b", "c", "d"]


def test_a_draw_never_holds_a_member_twice():
    pool = Bench("a", "b", "c").pool
    for _ in range(20):
        assert len(set(pool.draw(2))) == 2
    assert sorted(pool.draw(5)) == ["a", "b", "c"]


def test_a_solved_member_leaves_one_that_begins_to_succeed_stays_and_a_relapse_returns():
    bench = Bench("a", "b")
    bench.visit(a=1.0, b=0.5)
    assert bench.pool.draw(2) == ["b"]
    assert bench.pool.num_live == 1
    bench.visit(a=0.75)
    assert sorted(bench.pool.draw(2)) == ["a", "b"]


def test_a_member_that_relapses_before_the_next_draw_keeps_its_turn():
    bench = Bench("a", "b", "c")
    (first,) = bench.pool.draw(1)
    second, third = sorted({"a", "b", "c"} - {first})
    bench.visit(**{second: 1.0, third: 1.0})
    bench.visit(**{second: 0.0})
    assert bench.pool.draw(1) == [second]
    bench.visit(**{third: 0.0})
    assert sorted(bench.pool.draw(3)) == ["a", "b", "c"], "it lost its turn and comes with the next pass"


def test_the_accuracy_of_a_task_outside_the_pool_is_of_no_interest():
    bench = Bench("a")
    bench.visit(other=1.0)
    assert bench.pool.num_live == 1


def test_an_empty_pool_serves_nothing():
    assert Bench().pool.draw(3) == []


def test_the_hardest_members_tend_to_be_served_first():
    accuracies = {"hard": 0.0, "easy": 0.75}
    firsts = [
        Bench("hard", "easy", epsilon=0.25, seed=seed, accuracies=accuracies).pool.draw(1)[0] for seed in range(2000)
    ]
    assert firsts.count("hard") / 2000 == pytest.approx(0.8, abs=0.04)


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), max_size=20),
    st.integers(0, 20),
)
def test_a_pool_restored_from_json_serves_the_same_members(num_members, calls, stop):
    ids = [str(index) for index in range(num_members)]
    whole, parts = Bench(*ids, epsilon=0.1), Bench(*ids, epsilon=0.1)
    for call, (size, changed, accuracy) in enumerate(calls):
        if call == stop:
            state = json.loads(json.dumps(parts.pool.state_dict()))
            parts = Bench(epsilon=0.1, accuracies=parts.accuracies)
            parts.pool.load_state_dict(state)
        drawn = whole.pool.draw(size)
        live = [task_id for task_id in ids if whole.accuracies[task_id] < 1.0]
        assert parts.pool.draw(size) == drawn
        assert len(drawn) == len(set(drawn)) == min(size, len(live)) == min(size, parts.pool.num_live)
        assert set(drawn) <= set(live)
        for bench in (whole, parts):
            bench.visit(**{str(changed): accuracy})
