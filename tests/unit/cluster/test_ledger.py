"""The ledger says in one line what does not add up, and nothing when all does."""

from __future__ import annotations

from cluster.batches.ledger import GroupOutcome, Ledger, OutcomeCounts
from curriculum.leases import LeaseCounts


def test_fates_add_up_over_steps():
    ledger = Ledger()
    ledger.add(OutcomeCounts({GroupOutcome.TRAINED: 4, GroupOutcome.NO_VARIANCE: 1}))
    ledger.add(OutcomeCounts({GroupOutcome.TRAINED: 4, GroupOutcome.RETURNED: 2}))
    assert ledger == Ledger(trained=8, no_variance=1, returned=2)
    assert ledger.ended == 11
    assert ledger.trained_share == 8 / 11
    assert Ledger().trained_share is None


def test_a_ledger_balances_when_every_lease_ended_or_is_open():
    ledger = Ledger(trained=4, unknown=1, returned=2)
    assert ledger.imbalance(LeaseCounts(opened=10, reported=5, returned=2), num_open=3) is None


def test_a_lease_that_vanished_is_named():
    told = Ledger(trained=4).imbalance(LeaseCounts(opened=6, reported=4), num_open=1)
    assert told is not None
    assert told.startswith("6 leases were opened, but 4 ended (trained=4, ")
    assert told.endswith("and 1 are open")


def test_a_lease_that_was_given_back_counts_as_returned_and_as_nothing_else():
    told = Ledger(trained=5).imbalance(LeaseCounts(opened=5, reported=4, returned=1), num_open=0)
    assert told is not None
    assert "1 leases were given back, but 0 are booked as returned" in told
