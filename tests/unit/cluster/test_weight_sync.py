"""An engine that loaded something else than was sent, or computes something else, stops the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.weights.update import TensorRecord, WeightReceipt, WeightUpdate
from cluster.weights.contract import WeightSyncError, check_probe, check_receipt

A = TensorRecord(name="a", dtype="float32", shape=(2, 3), num_bytes=24, checksum=1)
B = TensorRecord(name="b", dtype="float32", shape=(4,), num_bytes=16, checksum=2)
C = TensorRecord(name="c", dtype="float32", shape=(1,), num_bytes=4, checksum=3)
UPDATE = WeightUpdate(version=3, path="p", tensors=(A, B))
RECEIPT = WeightReceipt(version=3, tensors=(A, B), pause_s=0.1, apply_s=0.1)


def test_a_receipt_that_equals_the_announcement_is_accepted():
    check_receipt(UPDATE, RECEIPT, "rollout-0")
    check_receipt(UPDATE, replace(RECEIPT, tensors=(B, A)), "rollout-0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2, but the learner sent version=3,"),
        ({"tensors": (A,)}, "tensor b is missing"),
        ({"tensors": ()}, "tensor a and 1 others are missing"),
        ({"tensors": (A, B, C)}, "tensor c is not sent by the learner but there"),
        ({"tensors": (A, replace(B, checksum=9))}, "tensor b is different from what the learner sent (other values)"),
        (
            {"tensors": (replace(A, dtype="bfloat16"), B)},
            "tensor a is different from what the learner sent (dtype=bfloat16 instead of float32)",
        ),
        (
            {"tensors": (replace(A, shape=(3, 2)), B)},
            "tensor a is different from what the learner sent (shape=(3, 2) instead of (2, 3))",
        ),
    ],
)
def test_a_difference_names_the_engine_and_the_tensor(change, message):
    with pytest.raises(WeightSyncError) as error:
        check_receipt(UPDATE, replace(RECEIPT, **change), "rollout-1")
    assert str(error.value) == f"rollout-1: {message} after the weight update; resume from the last checkpoint"


def test_a_probe_within_the_tolerance_gives_the_mean_gap():
    gap = check_probe((-1.0, -2.0), (-1.5, -1.75), engine="rollout-0", version=3, max_gap=0.4)
    assert gap == 0.375


@pytest.mark.parametrize("theirs", [(-1.0, -4.0), (-1.0, float("nan"))])
def test_a_probe_beyond_it_names_the_engine_and_both_means(theirs):
    with pytest.raises(WeightSyncError, match=r"rollout-1: after weight update 3 .* the learner -1\.5000; .*stale"):
        check_probe((-1.0, -2.0), theirs, engine="rollout-1", version=3, max_gap=0.4)
