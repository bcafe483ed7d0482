import json

import pytest

from curriculum.difficulty import DifficultyTable, difficulty


def test_difficulty_is_the_inverse_of_the_mean_accuracy_plus_epsilon():
    assert difficulty(0.375, 0.125) == 2.0
    assert difficulty(0.0, 0.125) == 8.0


def test_an_unvisited_task_has_no_accuracy():
    table = DifficultyTable()
    assert table.mean_accuracy("a") is None
    assert table.num_visits("a") == 0


def test_every_visit_refreshes_the_accuracy():
    table = DifficultyTable()
    assert table.record("a", lease_id=0, accuracies=(0.0, 0.0, 0.0, 0.0)) == 0.0
    assert table.mean_accuracy("a") == 0.0
    assert table.record("a", lease_id=7, accuracies=(1.0, 0.0, 0.0, 0.0)) == 0.25
    assert table.mean_accuracy("a") == 0.25
    assert table.num_visits("a") == 2


def test_a_group_without_known_accuracy_is_a_visit_that_changes_nothing():
    table = DifficultyTable()
    table.record("a", lease_id=0, accuracies=(1.0, 0.0))
    assert table.record("a", lease_id=1, accuracies=()) is None
    assert (table.mean_accuracy("a"), table.num_visits("a")) == (0.5, 2)


def test_the_latest_lease_counts_whatever_the_order_of_the_reports():
    table = DifficultyTable()
    table.record("a", lease_id=5, accuracies=(1.0,))
    table.record("a", lease_id=4, accuracies=(0.0,))
    assert table.mean_accuracy("a") == 1.0


def test_a_table_survives_json():
    table, restored = DifficultyTable(), DifficultyTable()
    table.record("b", lease_id=0, accuracies=(1 / 3, 0.1))
    table.record("a", lease_id=1, accuracies=())
    restored.load_state_dict(json.loads(json.dumps(table.state_dict())))
    assert restored.state_dict() == table.state_dict()
    assert restored.mean_accuracy("b") == pytest.approx((1 / 3 + 0.1) / 2, abs=0)
    restored.record("a", lease_id=2, accuracies=(1.0,))
    assert restored.num_visits("a") == 2
