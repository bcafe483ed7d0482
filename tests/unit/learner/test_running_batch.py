"""Which mini-batch the groups of a slice belong to, and what is known of it before it is whole."""

from __future__ import annotations

import pytest

from learner.forward.running_batch import RunningBatch, mini_batch_parts


def _cut(start, count, batch_groups=10, num_mini_batches=4):
    return [
        (part.mini_batch, tuple(part.groups), part.mini_batch_groups, part.is_last)
        for part in mini_batch_parts(start, count, batch_groups=batch_groups, num_mini_batches=num_mini_batches)
    ]


def test_mini_batches_are_consecutive_and_differ_by_at_most_one_group():
    assert _cut(0, 10) == [
        (0, (0, 1), 2, True), (1, (2, 3, 4), 3, True), (2, (5, 6), 2, True), (3, (7, 8, 9), 3, True),
    ]  # fmt: skip


def test_a_slice_that_ends_within_a_mini_batch_leaves_it_open_and_knows_its_size():
    assert _cut(0, 4) == [(0, (0, 1), 2, True), (1, (2, 3), 3, False)]
    assert _cut(4, 3) == [(1, (4,), 3, True), (2, (5, 6), 2, True)]


def test_a_batch_with_fewer_groups_than_mini_batches_makes_one_update_per_group():
    assert _cut(0, 2, batch_groups=2) == [(0, (0,), 1, True), (1, (1,), 1, True)]


def test_a_slice_beyond_the_batch_is_refused():
    with pytest.raises(ValueError, match="groups_per_batch=10; update first"):
        mini_batch_parts(8, 3, batch_groups=10, num_mini_batches=1)


def test_a_batch_counts_its_groups_and_a_mini_batch_knows_whether_it_is_short():
    batch = RunningBatch()
    for part in mini_batch_parts(0, 4, batch_groups=10, num_mini_batches=4):
        batch.add(part)
    assert batch.num_groups == 4
    assert [(m.num_groups, m.max_groups, m.is_short) for m in batch.mini_batches] == [(2, 2, False), (2, 3, True)]


def test_slices_out_of_order_are_refused():
    batch = RunningBatch()
    (later,) = mini_batch_parts(2, 3, batch_groups=10, num_mini_batches=4)
    with pytest.raises(ValueError, match=r"groups 2 to 4 of the batch came, but 0 groups came before; send"):
        batch.add(later)
