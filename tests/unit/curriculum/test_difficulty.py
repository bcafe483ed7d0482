import json

from curriculum.difficulty import DifficultyTable, difficulty


def test_difficulty_is_the_inverse_of_the_mean_accuracy_plus_epsilon():
    assert difficulty(0.375) == 2.0
    assert difficulty(0.0) == 8.0


def test_an_unvisited_task_has_no_accuracy():
    table = DifficultyTable()
    assert table.mean_accuracy("a") is None
    assert table.num_visits("a") == 0


def test_every_visit_refreshes_the_accuracy():
    table = DifficultyTable()
    table.record("a", lease_id=0, accuracy=0.0)
    assert table.mean_accuracy("a") == 0.0
    table.record("a", lease_id=7, accuracy=0.25)
    assert table.mean_accuracy("a") == 0.25
    assert table.num_visits("a") == 2


def test_a_group_without_an_accuracy_is_a_visit_that_changes_nothing():
    table = DifficultyTable()
    table.record("a", lease_id=0, accuracy=0.5)
    table.record("a", lease_id=1, accuracy=None)
    assert (table.mean_accuracy("a"), table.num_visits("a")) == (0.5, 2)


def test_the_latest_lease_counts_whatever_the_order_of_the_reports():
    table = DifficultyTable()
    table.record("a", lease_id=5, accuracy=1.0)
    table.record("a", lease_id=4, accuracy=0.0)
    assert table.mean_accuracy("a") == 1.0


def test_a_group_without_a_lease_is_later_than_the_newest_lease_and_earlier_than_the_next():
    table = DifficultyTable()
    table.record("a", lease_id=-1, accuracy=0.5)
    assert table.mean_accuracy("a") == 0.5
    table.record("a", lease_id=3, accuracy=0.0)
    table.record("a", lease_id=3, accuracy=0.75)
    assert table.mean_accuracy("a") == 0.75
    table.record("a", lease_id=4, accuracy=1.0)
    assert table.mean_accuracy("a") == 1.0


def test_the_accuracy_under_the_base_model_stays():
    table = DifficultyTable()
    assert table.base_accuracy("a") is None
    table.record_base("a", 0.125)
    table.record("a", lease_id=0, accuracy=1.0)
    assert table.base_accuracy("a") == 0.125


def test_a_table_survives_json():
    table, restored = DifficultyTable(), DifficultyTable()
    table.record("b", lease_id=0, accuracy=1 / 3)
    table.record("a", lease_id=1, accuracy=None)
    table.record_base("b", 0.1)
    restored.load_state_dict(json.loads(json.dumps(table.state_dict())))
    assert restored.state_dict() == table.state_dict()
    assert (restored.mean_accuracy("b"), restored.base_accuracy("b")) == (1 / 3, 0.1)
    restored.record("a", lease_id=2, accuracy=1.0)
    assert restored.num_visits("a") == 2
