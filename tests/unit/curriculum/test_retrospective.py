import json

from hypothesis import given
from hypothesis import strategies as st

from curriculum.retrospective import MAX_POOL_SIZE, RetrospectivePool, draw_pool

ACCURACIES = {"never": None, "zero": 0.0, "nil": 0.0, "half": 0.5, "solved": 1.0}


def test_the_papers_pool_holds_the_tasks_whose_mean_accuracy_is_zero():
    num_candidates, members = draw_pool(ACCURACIES, seed=0, phase=1)
    assert num_candidates == 2
    assert set(members) == {"zero", "nil"}


def test_without_candidates_the_pool_is_empty():
    assert draw_pool({"a": 1.0, "b": None}, seed=0, phase=1) == (0, ())
    assert draw_pool({}, seed=0, phase=1) == (0, ())


def test_the_pool_is_bounded_and_says_how_many_qualified():
    num_candidates, members = draw_pool({str(i): 0.0 for i in range(MAX_POOL_SIZE + 9)}, seed=0, phase=1)
    assert num_candidates == MAX_POOL_SIZE + 9
    assert len(set(members)) == MAX_POOL_SIZE


def test_the_draw_repeats_with_its_seed_and_differs_between_seeds():
    many = {str(index): 0.0 for index in range(30)}
    assert draw_pool(many, seed=5, phase=1) == draw_pool(many, seed=5, phase=1)
    assert draw_pool(many, seed=5, phase=1) != draw_pool(many, seed=6, phase=1)


class Bench:
    """A pool and the accuracies it looks at; members start unsolved."""

    def __init__(self, *members, accuracies=None):
        self.accuracies = accuracies if accuracies is not None else dict.fromkeys(members, 0.0)
        self.taken = set()
        self.pool = RetrospectivePool(
            members, accuracy_of=self.accuracies.get, is_taken=self.taken.__contains__, seed=0, phase=1
        )

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


def test_a_member_that_is_taken_is_skipped_and_keeps_its_turn():
    bench = Bench("a", "b", "c")
    (first,) = bench.pool.draw(1)
    second, third = sorted({"a", "b", "c"} - {first})
    bench.taken |= {first, second}
    assert bench.pool.draw(3) == [third]
    assert bench.pool.draw(3) == [third], "the only one that is free, in the next pass"
    assert bench.pool.num_live == 3
    bench.taken.clear()
    assert set(bench.pool.draw(2)) == {first, second}


def test_while_all_members_are_taken_nothing_is_drawn_and_no_pass_begins():
    bench = Bench("a", "b")
    bench.taken |= {"a", "b"}
    assert bench.pool.draw(2) == []
    assert bench.pool.state_dict()["num_passes"] == 0


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), max_size=20),
    st.integers(0, 20),
)
def test_a_pool_restored_from_json_serves_the_same_members(num_members, calls, stop):
    ids = [str(index) for index in range(num_members)]
    whole, parts = Bench(*ids), Bench(*ids)
    for call, (size, changed, accuracy) in enumerate(calls):
        if call == stop:
            state = json.loads(json.dumps(parts.pool.state_dict()))
            parts = Bench(accuracies=parts.accuracies)
            parts.pool.load_state_dict(state)
        drawn = whole.pool.draw(size)
        live = [task_id for task_id in ids if whole.accuracies[task_id] < 1.0]
        assert parts.pool.draw(size) == drawn
        assert len(drawn) == len(set(drawn)) == min(size, len(live)) == min(size, parts.pool.num_live)
        assert set(drawn) <= set(live)
        for bench in (whole, parts):
            bench.visit(**{str(changed): accuracy})
