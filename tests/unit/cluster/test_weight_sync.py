"""An engine that received something else than was sent stops the run."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save

from actors.weight_receiver import WeightReceipt, WeightReceiver
from cluster.weight_sync import WeightSyncError, check_receipt
from learner.weight_sender import WeightAnnouncement, pack_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}
ANNOUNCEMENT = WeightAnnouncement(version=3, num_bytes=100, checksums={"a": 1, "b": 2})


class SilentRunner:
    """A model runner that takes any weights, for a model without a head."""

    def reload_weights(self, weights_iterator):
        list(weights_iterator)

    def get_model(self):
        return None


def received(tmp_path, payload) -> WeightReceipt:
    path = tmp_path / "payload"
    path.write_bytes(bytes(payload))
    worker = WeightReceiver()
    worker.model_runner = SilentRunner()
    return WeightReceipt(version=3, **worker.load_safetensors(str(path)))


def test_a_receipt_that_equals_the_announcement_is_accepted():
    check_receipt(ANNOUNCEMENT, WeightReceipt(**asdict(ANNOUNCEMENT)), "rollout-0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2, but the learner sent version=3,"),
        ({"num_bytes": 99}, "num_bytes=99, but the learner sent num_bytes=100,"),
        ({"checksums": {"a": 1}}, "tensor b is missing"),
        ({"checksums": {}}, "tensor a and 1 others are missing"),
        ({"checksums": {"a": 1, "b": 2, "c": 3}}, "tensor c is not sent by the learner but there"),
        ({"checksums": {"a": 1, "b": 3}}, "tensor b is different from what the learner sent"),
    ],
)
def test_a_difference_names_the_engine_and_the_tensor(change, message):
    receipt = replace(WeightReceipt(**asdict(ANNOUNCEMENT)), **change)
    with pytest.raises(WeightSyncError) as error:
        check_receipt(ANNOUNCEMENT, receipt, "rollout-1")
    assert str(error.value) == f"rollout-1: {message} after the weight update; resume from the last checkpoint"


def test_what_the_learner_packs_is_what_the_worker_receipts(tmp_path):
    announcement, payload = pack_weights(WEIGHTS.items(), version=3)
    check_receipt(announcement, received(tmp_path, payload), "rollout-0")


@pytest.mark.parametrize(
    ("weights", "tensor"),
    [
        ({"a": WEIGHTS["a"]}, "b is missing"),
        ({**WEIGHTS, "c": torch.zeros(1)}, "c is not sent"),
        ({**WEIGHTS, "a": WEIGHTS["a"].reshape(3, 2)}, "a is different"),
        ({**WEIGHTS, "b": torch.tensor([0.0, 0.0, 0.0, 1e-30])}, "b is different"),
        ({"a": WEIGHTS["a"], "z": WEIGHTS["b"]}, "b is missing"),
    ],
    ids=["missing", "extra", "reshaped", "one value changed", "renamed"],
)
def test_other_weights_are_noticed_and_named(tmp_path, weights, tensor):
    announcement, _ = pack_weights(WEIGHTS.items(), version=3)
    with pytest.raises(WeightSyncError, match=f"rollout-0: tensor {tensor}"):
        check_receipt(announcement, received(tmp_path, save(weights)), "rollout-0")
