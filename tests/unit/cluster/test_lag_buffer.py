"""Admission and departure by hand-made numbers; B = 2 groups per batch, k = 2 updates of lag."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.trajectory import GroupMeta
from cluster.batches.lag_buffer import AcceptanceRate, LagBoundError, LagBuffer
from cluster.batches.ledger import GroupOutcome
from cluster.group import ScoredGroup


@pytest.fixture(scope="module")
def scored(make_group, make_score):
    from curriculum.task import TaskLease

    def build(lease_id, version, accuracies=(1.0, 0.0)):
        lease = TaskLease(lease_id=lease_id, task_id=f"t{lease_id}", attempt=0, replayed=False, phase=0)
        group = make_group(lease, len(accuracies), version)
        return ScoredGroup(meta=GroupMeta.of(group), scores=tuple(map(make_score, accuracies)), group=group)

    return build


def buffer(max_policy_lag=2):
    return LagBuffer(batch_size=2, max_policy_lag=max_policy_lag)


def room(b, num_slots=99, remaining_steps=None):
    return b.room(num_slots=num_slots, remaining_steps=remaining_steps)


def at(b, version):
    """The learner makes an update and the engines take it."""
    b.advance(version)
    b.engines_at(version)


def leases(batch):
    return [group.lease_id for group in batch]


def test_two_batches_are_let_in_and_the_one_in_training_is_one_of_them(scored):
    b = buffer()
    assert room(b) == 4
    b.admit([0, 1, 2, 3])
    assert room(b) == 0
    for lease in (0, 1):
        b.arrive(scored(lease, 0), trainable=True)
    assert room(b) == 0, "what waits takes the room of what is under way"
    assert leases(b.take(2)) == [0, 1]
    assert room(b) == 0, "a batch in training takes room as well"
    at(b, 1)
    assert room(b) == 2


def test_no_more_is_let_in_than_engines_work_on_or_the_phase_still_needs():
    assert room(buffer(), num_slots=3) == 3
    assert room(buffer(), remaining_steps=1) == 2
    assert room(buffer(), remaining_steps=0) == 0


def test_where_half_of_all_groups_have_a_signal_more_are_let_in_up_to_the_bound(scored):
    b = buffer(max_policy_lag=4)
    for lease in range(8):
        b.admit([lease])
        b.arrive(scored(lease, 0), trainable=lease % 2 == 1)
    assert b.acceptance.value == pytest.approx(5 / 9)
    b.clear()
    assert room(b) == 8, "ceil(4 / (5/9))"
    narrow = buffer(max_policy_lag=1)
    narrow.acceptance = b.acceptance
    assert room(narrow) == 4, "(k + 1) B, whatever the rate"


def test_a_group_without_signal_makes_room_and_says_why(scored):
    b = buffer()
    b.admit([0, 1])
    assert b.arrive(scored(0, 0, (1.0, 1.0)), trainable=False) is GroupOutcome.NO_VARIANCE
    assert b.arrive(scored(1, 0, (1.0, None)), trainable=False) is GroupOutcome.UNKNOWN
    assert (b.num_in_flight, b.num_waiting) == (0, 0)


def test_the_oldest_groups_leave_first_in_the_order_of_their_leases(scored):
    b = buffer()
    b.admit([0, 1, 2, 3])
    for lease, version in ((3, 0), (0, 1), (2, 0), (1, 1)):
        b.arrive(scored(lease, version), trainable=True)
    at(b, 1)
    assert leases(b.take(2)) == [2, 3]


def test_a_batch_waits_for_a_group_that_is_due(scored):
    b = buffer()
    b.admit([0])
    at(b, 2)
    b.admit([1, 2])
    for lease in (1, 2):
        b.arrive(scored(lease, 2), trainable=True)
    assert not b.is_ready(2), "lease 0 was admitted two updates ago"
    with pytest.raises(LagBoundError, match="may not leave at version 2: 1 in flight"):
        b.take(2)
    b.arrive(scored(0, 0), trainable=True)
    assert b.is_ready(2)
    assert leases(b.take(2)) == [0, 1]


def test_a_batch_waits_if_more_would_be_due_next_than_fit_into_a_batch(scored):
    b = buffer()
    b.admit([0, 1, 2])
    at(b, 1)
    b.admit([3, 4])
    for lease in (3, 4):
        b.arrive(scored(lease, 1), trainable=True)
    assert not b.is_ready(2), "after this batch leases 0, 1 and 2 would be due at once"
    b.arrive(scored(2, 0), trainable=True)
    assert b.is_ready(2)
    assert leases(b.take(2)) == [2, 3]


def test_a_group_of_weights_older_than_those_at_its_admission_counts_as_too_old(scored):
    b = buffer()
    at(b, 1)
    b.admit([0])
    assert b.arrive(scored(0, 0), trainable=True) is GroupOutcome.TOO_OLD


def test_a_group_of_weights_that_nobody_has_sent_stops_the_run(scored):
    b = buffer()
    b.admit([0])
    b.arrive(scored(0, 3), trainable=True)
    with pytest.raises(LagBoundError, match=r"task t0: policy_version=3, but the learner is at 0"):
        b.take(2)


def test_clearing_returns_every_lease_under_way_or_waiting(scored):
    b = buffer()
    b.admit([0, 1, 2])
    b.arrive(scored(1, 0), trainable=True)
    assert b.clear() == [0, 1, 2]
    assert room(b) == 4


def test_the_acceptance_rate_forgets_what_is_old():
    rate = AcceptanceRate(window=2)
    assert rate.value == 1.0
    for accepted in (False, False, True, True):
        rate.observe(accepted)
    assert rate.value == 1.0


def test_a_batch_leaves_in_slices_and_a_due_group_may_come_in_any_of_them(scored):
    b = buffer()
    b.admit([0])
    at(b, 2)
    b.admit([1, 2])
    for lease in (1, 2):
        b.arrive(scored(lease, 2), trainable=True)
    assert b.is_ready(1), "lease 0 is due, but the batch has one more place"
    assert leases(b.take(1)) == [1]
    assert (b.num_missing, b.is_ready(1)) == (1, False)
    b.arrive(scored(0, 0), trainable=True)
    assert leases(b.take(1)) == [0]
    assert b.num_missing == 0


def test_a_batch_that_is_given_up_short_takes_the_room_of_a_whole_one_until_the_update(scored):
    b = buffer()
    b.admit([0])
    b.arrive(scored(0, 0), trainable=True)
    b.take(1)
    assert room(b, num_slots=99) == 3
    b.close_batch()
    assert room(b) == 2
    at(b, 1)
    assert room(b) == 4


def test_while_an_update_travels_what_is_let_in_counts_as_older_and_one_batch_less_is(scored):
    b = buffer(max_policy_lag=1)
    b.admit([0, 1])
    for lease in (0, 1):
        b.arrive(scored(lease, 0), trainable=True)
    b.take(2)
    b.close_batch()
    b.advance(1)
    assert room(b) == 2, "under the old weights: due in the batch that begins now"
    b.admit([2, 3])
    assert room(b) == 0
    b.engines_at(1)
    assert room(b) == 2


@given(
    seed=st.integers(0, 10**6),
    max_policy_lag=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    slice_size=st.integers(1, 6),
)
@settings(max_examples=300, deadline=None)
def test_admission_and_departure_never_lead_into_a_dead_end(scored, seed, max_policy_lag, batch_size, slice_size):
    """Groups arrive in any order, with or without a signal, and updates travel as long as they like: a slice can always
    leave in the end, and never too late."""
    draw = random.Random(seed)
    b = LagBuffer(batch_size=batch_size, max_policy_lag=max_policy_lag)
    under_way, next_lease, version, engines = [], 0, 0, 0

    def admit():
        nonlocal next_lease
        number = draw.randint(0, room(b))
        b.admit(range(next_lease, next_lease + number))
        under_way.extend((lease, engines) for lease in range(next_lease, next_lease + number))
        next_lease += number

    def arrive():
        lease, admitted = under_way.pop(draw.randrange(len(under_way)))
        b.arrive(scored(lease, draw.randint(admitted, version)), trainable=draw.random() < 0.75)

    while version < 6:
        admit()
        size = min(slice_size, b.num_missing)
        if under_way and (not b.is_ready(size) or draw.random() < 0.5):
            arrive()
        elif b.is_ready(size):
            assert all(version - group.meta.policy_version <= max_policy_lag for group in b.take(size))
            admit()
        else:
            assert b.num_waiting < size, "a whole slice, nothing under way, and yet it may not leave"
        if engines < version and draw.random() < 0.3:
            engines = version
            b.engines_at(engines)
        if b.num_missing == 0:
            b.close_batch()
            engines = version  # an update begins to travel when the one before it has arrived
            b.engines_at(engines)
            version += 1
            b.advance(version)
