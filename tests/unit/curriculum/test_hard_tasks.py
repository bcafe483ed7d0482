"""Replay by Eq. 10: visits follow the weights 1 / (mean accuracy + 1/8)."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.hard_tasks import HardTasks


class Bench:
    """Tasks with accuracies; None is one that cannot be drawn. Nothing is taken unless the test says so."""

    def __init__(self, accuracies, seed=0):
        self.accuracies = accuracies
        self.taken = set()
        self.tasks = HardTasks(
            list(accuracies), accuracy_of=self.accuracy_of, is_taken=self.taken.__contains__, seed=seed, phase=1
        )

    def accuracy_of(self, task_id):
        accuracy = self.accuracies[task_id]
        return None if accuracy == 1.0 else accuracy

    def batch(self, num_tasks):
        """Draw for one batch, and let it end."""
        drawn = self.tasks.draw(num_tasks)
        for task_id in drawn:
            self.tasks.refresh(task_id)
        return drawn

    def visit(self, **accuracies):
        self.accuracies.update(accuracies)
        for task_id in accuracies:
            self.tasks.refresh(task_id)


EIGHTS = {f"{eighths}-{index}": eighths / 8 for eighths in range(8) for index in range(30)}
"""240 tasks whose accuracies are 0, 1/8, ... 7/8."""


def test_long_run_visits_of_240_tasks_follow_the_weights_of_eq_10():
    # weights 8 / (k + 1) for k successes of eight: the hardest tasks are visited eight times as often as the easiest
    bench, num_draws = Bench(EIGHTS), 40_000
    visits = Counter(int(bench.batch(1)[0].partition("-")[0]) for _ in range(num_draws))
    total = sum(1 / (k + 1) for k in range(8))
    for k in range(8):
        assert visits[k] / num_draws == pytest.approx(1 / (k + 1) / total, rel=0.06)
    assert visits[0] / visits[7] == pytest.approx(8, rel=0.06)


def test_tasks_of_equal_accuracy_are_visited_equally_often():
    bench = Bench({str(index): 0.5 for index in range(10)})
    visits = Counter(bench.batch(1)[0] for _ in range(20_000))
    assert min(visits.values()) > 1840  # 2000 expected, standard deviation 42
    assert max(visits.values()) < 2160


def test_the_slots_of_a_batch_are_drawn_from_those_that_are_left():
    # weights 1, 2 and 5: the pair (5, 2) comes with 5/8 * 2/3
    accuracies = {"one": 7 / 8, "two": 3 / 8, "five": 3 / 40}
    bench = Bench(accuracies)
    pairs = Counter(tuple(bench.batch(2)) for _ in range(20_000))
    assert pairs["five", "two"] / 20_000 == pytest.approx(5 / 8 * 2 / 3, abs=0.015)
    assert pairs["one", "five"] / 20_000 == pytest.approx(1 / 8 * 5 / 7, abs=0.01)


def test_no_task_is_drawn_twice_into_a_batch_and_a_batch_larger_than_the_pool_gets_all():
    bench = Bench({"a": 0.0, "b": 0.5, "c": 1.0})
    assert sorted(bench.batch(5)) == ["a", "b"]
    assert bench.tasks.num_live == 2


def test_a_task_that_is_taken_is_not_drawn_but_counts_as_unsolved():
    bench = Bench({"a": 0.0, "b": 0.5})
    bench.taken.add("a")
    bench.visit(a=0.25)
    assert bench.batch(5) == ["b"]
    assert (bench.tasks.num_live, bench.tasks.live()) == (2, ["a", "b"])
    bench.taken.remove("a")
    bench.tasks.refresh("a")
    assert sorted(bench.batch(5)) == ["a", "b"]


def test_a_solved_task_leaves_and_one_that_relapses_returns():
    bench = Bench({"a": 0.0, "b": 0.5})
    bench.visit(a=1.0)
    assert (bench.batch(5), bench.tasks.num_live) == (["b"], 1)
    bench.visit(a=7 / 8)
    assert (sorted(bench.batch(5)), bench.tasks.num_live) == (["a", "b"], 2)


def test_a_task_that_was_never_scored_is_not_drawn_until_it_is():
    bench = Bench({"a": None, "b": 0.5})
    assert bench.batch(5) == ["b"]
    bench.visit(a=0.0)
    assert sorted(bench.batch(5)) == ["a", "b"]


def test_a_removed_task_does_not_come_back():
    bench = Bench({"a": 0.0, "b": 0.5})
    bench.tasks.remove("a")
    bench.visit(a=0.0)
    bench.tasks.remove("of another phase")
    assert (bench.batch(5), bench.tasks.num_live) == (["b"], 1)


def test_nothing_to_replay_draws_nothing():
    assert Bench({}).batch(3) == []
    assert Bench({"a": 1.0}).batch(3) == []


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), max_size=20),
    st.integers(0, 20),
    st.integers(0, 99),
)
def test_draws_after_a_resume_are_those_without_it(calls, stop, seed):
    start = {str(index): index / 8 for index in range(6)}
    whole, parts = Bench(dict(start), seed), Bench(dict(start), seed)
    for call, (size, changed, accuracy) in enumerate(calls):
        if call == stop:
            state = json.loads(json.dumps(parts.tasks.state_dict()))
            parts = Bench(parts.accuracies, seed)
            parts.tasks.load_state_dict(state)
        drawn = whole.batch(size)
        assert parts.batch(size) == drawn
        assert len(drawn) == len(set(drawn)) == min(size, whole.tasks.num_live)
        whole.visit(**{str(changed): accuracy})
        parts.visit(**{str(changed): accuracy})
