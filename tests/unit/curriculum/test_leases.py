import json

import pytest

from curriculum.leases import LeaseBook, LeaseCounts


@pytest.fixture
def book(clock):
    return LeaseBook(timeout_s=60.0, now=clock)


def open_all(book, tasks):
    return [book.open(task.task_id, phase=0, replayed=False) for task in tasks]


def test_lease_ids_are_ordinals_and_attempts_count_the_leases_of_a_task(book, make_tasks):
    (task,) = make_tasks(1)
    leases = open_all(book, [task, task, task])
    assert [(lease.lease_id, lease.attempt) for lease in leases] == [(0, 0), (1, 1), (2, 2)]


def test_leases_go_out_in_order_and_then_there_are_none(book, make_tasks):
    open_all(book, make_tasks(2))
    assert book.hand_out("rollout-0").lease_id == 0
    assert book.hand_out("rollout-1").lease_id == 1
    assert book.hand_out("rollout-0") is None
    assert (len(book.open_ids), book.num_held) == (2, 2)


def test_the_leases_of_a_dead_holder_go_out_first_and_unchanged(book, make_tasks):
    open_all(book, make_tasks(4))
    taken = [book.hand_out(holder) for holder in ("dead", "alive", "dead")]
    assert book.release("dead") == ()
    assert book.counts.released == 2
    again = [book.hand_out("alive") for _ in range(3)]
    assert [lease.lease_id for lease in again] == [0, 2, 3]
    assert again[0] is taken[0]
    book.release("dead")
    assert book.counts.released == 2


def test_a_lease_that_is_not_reported_in_time_goes_out_again(book, clock, make_tasks):
    open_all(book, make_tasks(2))
    first = book.hand_out("slow")
    clock.now_s = 59.9
    assert book.hand_out("quick").lease_id == 1
    clock.now_s = 60.0
    assert book.hand_out("quick") is first
    assert book.counts == LeaseCounts(opened=2, leased=3, expired=1)


def test_the_first_result_of_a_lease_wins_and_the_second_is_a_duplicate(book, clock, make_tasks):
    open_all(book, make_tasks(1))
    book.hand_out("slow")
    clock.now_s = 60.0
    book.hand_out("quick")
    assert book.close(0, "t0-0").lease_id == 0
    assert book.close(0, "t0-0") is None
    assert book.counts == LeaseCounts(opened=1, leased=2, expired=1, reported=1, duplicate=1)


def test_a_late_result_is_taken_while_nobody_else_has_the_lease(book, make_tasks):
    open_all(book, make_tasks(1))
    book.hand_out("slow")
    book.release("slow")
    assert book.close(0, "t0-0").lease_id == 0
    assert book.hand_out("quick") is None
    assert (book.counts.late, book.counts.reported) == (1, 1)


@pytest.mark.parametrize(("lease_id", "task_id"), [(7, "t0-0"), (-1, "t0-0"), (0, "t0-1"), (1, "t0-1")])
def test_a_result_of_a_lease_that_never_was_or_of_another_task_is_ignored_and_counted(
    book, make_tasks, lease_id, task_id
):
    open_all(book, make_tasks(2))
    book.hand_out("rollout-0")
    assert book.close(lease_id, task_id) is None
    assert book.counts.unknown == 1
    assert (len(book.open_ids), book.num_held) == (2, 1)


def test_after_a_restart_held_leases_wait_again_in_order(book, clock, make_tasks):
    tasks = make_tasks(4)
    open_all(book, tasks)
    for _ in range(3):
        book.hand_out("rollout-0")
    book.close(1, "t0-1")
    restored = LeaseBook(timeout_s=60.0, now=clock)
    restored.load_state_dict(json.loads(json.dumps(book.state_dict())))
    leases = [restored.hand_out("rollout-9") for _ in range(3)]
    assert [lease.lease_id for lease in leases] == [0, 2, 3]
    assert restored.counts == LeaseCounts(opened=4, leased=6, reported=1, released=2)
    assert restored.open(tasks[0].task_id, phase=0, replayed=True).attempt == 1


def test_a_lease_that_its_holder_gives_back_goes_out_again_first_and_counts_how_often(book, make_tasks):
    open_all(book, make_tasks(2))
    first = book.hand_out("slow")
    assert book.requeue(0, "slow")
    again = book.hand_out("quick")
    assert (again.lease_id, again.attempt, again.num_requeues) == (0, first.attempt, 1)
    assert book.counts == LeaseCounts(opened=2, leased=2, requeued=1)


def test_nobody_gives_back_a_lease_that_is_not_theirs(book, make_tasks):
    open_all(book, make_tasks(1))
    assert not book.requeue(0, "slow")
    book.hand_out("quick")
    assert not book.requeue(0, "slow")
    assert not book.requeue(5, "quick")
    book.keep(0, "t0-0")
    assert not book.requeue(0, "quick"), "its answer is there"
    assert book.counts.requeued == 0


def test_a_result_from_before_the_restart_is_refused(book, clock, make_tasks):
    tasks = make_tasks(1)
    open_all(book, tasks)
    book.hand_out("rollout-0")
    restored = LeaseBook(timeout_s=60.0, now=clock)
    restored.load_state_dict(book.state_dict())
    assert restored.close(0, "t0-0") is None
    assert (len(restored.open_ids), restored.num_held) == (1, 0)


def test_a_kept_lease_survives_its_deadline_and_the_death_of_its_holder(book, clock, make_tasks):
    open_all(book, make_tasks(1))
    book.hand_out("rollout-0")
    assert book.keep(0, "t0-0")
    clock.now_s = 1e9
    assert book.hand_out("rollout-1") is None
    assert book.release("rollout-0") == ()
    assert book.close(0, "t0-0").lease_id == 0
    assert book.counts == LeaseCounts(opened=1, leased=1, reported=1)


def test_a_second_answer_to_a_kept_lease_is_a_duplicate_and_the_lease_never_goes_out_again(book, clock, make_tasks):
    open_all(book, make_tasks(1))
    book.hand_out("slow")
    clock.now_s = 60.0
    book.hand_out("quick")
    clock.now_s = 120.0
    assert book.hand_out("slow").lease_id == 0
    book.release("slow")
    assert book.keep(0, "t0-0"), "it waits to go out again when the first answer comes"
    assert not book.keep(0, "t0-0")
    assert book.hand_out("quick") is None
    assert (book.counts.duplicate, book.counts.late) == (1, 1)


def test_only_a_lease_that_was_handed_out_can_be_kept(book, make_tasks):
    open_all(book, make_tasks(1))
    assert not book.keep(0, "t0-0")
    book.hand_out("rollout-0")
    assert not book.keep(0, "another task")
    assert not book.keep(7, "t0-0")
    assert book.counts.unknown == 3


def test_a_kept_lease_is_saved_as_an_open_one(book, make_tasks, clock):
    tasks = make_tasks(2)
    open_all(book, tasks)
    book.hand_out("rollout-0")
    book.keep(0, "t0-0")
    state = json.loads(json.dumps(book.state_dict()))
    restored = LeaseBook(timeout_s=60.0, now=clock)
    restored.load_state_dict(state)
    assert [restored.hand_out("rollout-0").lease_id for _ in range(2)] == [0, 1]


def test_withdrawn_leases_are_closed_without_an_outcome(book, make_tasks):
    open_all(book, make_tasks(3))
    book.hand_out("rollout-0")
    assert book.withdraw([0, 1, 9]) == 2
    assert book.open_ids == (2,)
    assert book.close(0, "t0-0") is None
    assert (book.counts.returned, book.counts.reported, book.counts.duplicate) == (2, 0, 1)
    assert book.hand_out("rollout-0").lease_id == 2


# ---- leases that kill their holders


def dies_with(book, holder):
    """Let a holder take what it can get, and die; return what it held, and what is condemned."""
    held = [lease.lease_id for lease in iter(lambda: book.hand_out(holder), None)]
    return held, [lease.lease_id for lease in book.release(holder)]


def test_a_lease_that_kills_two_holders_alone_is_condemned_and_goes_out_no_more(book, make_tasks):
    open_all(book, make_tasks(1))
    assert dies_with(book, "rollout-0") == ([0], [])
    assert dies_with(book, "rollout-1") == ([0], [0])
    assert book.hand_out("rollout-2") is None
    assert book.open_ids == (0,), "until its outcome is reported"
    assert book.keep(0, "t0-0")
    assert book.close(0, "t0-0").lease_id == 0


def test_of_leases_that_died_together_twice_each_is_held_alone_and_only_the_guilty_one_is_condemned(book, make_tasks):
    open_all(book, make_tasks(4))
    assert dies_with(book, "rollout-0") == ([0, 1, 2, 3], [])
    assert dies_with(book, "rollout-0") == ([0, 1, 2, 3], [])
    for innocent in (0, 1):
        assert book.hand_out("rollout-0").lease_id == innocent
        assert book.hand_out("rollout-0") is None, "nothing else is held beside a suspect"
        book.close(innocent, f"t0-{innocent}")
    assert dies_with(book, "rollout-0") == ([2], [2])
    assert book.hand_out("rollout-0").lease_id == 3


def test_a_suspect_waits_for_a_holder_that_holds_nothing(book, make_tasks):
    open_all(book, make_tasks(2))
    dies_with(book, "rollout-0")
    dies_with(book, "rollout-0")
    open_all(book, make_tasks(0, 2))
    assert book.hand_out("rollout-0").lease_id == 0
    assert book.hand_out("rollout-1").lease_id == 1
    assert book.hand_out("rollout-2").lease_id == 2
    book.requeue(1, "rollout-1")
    assert book.hand_out("rollout-2") is None, "its own lease must end first"
    book.close(2, "t1-0")
    assert book.hand_out("rollout-2").lease_id == 1


def test_after_a_resume_no_lease_is_suspected(book, clock, make_tasks):
    open_all(book, make_tasks(1))
    dies_with(book, "rollout-0")
    dies_with(book, "rollout-0")
    restored = LeaseBook(timeout_s=60.0, now=clock)
    restored.load_state_dict(book.state_dict())
    assert restored.hand_out("rollout-0").lease_id == 0
