"""The receiving side of a weight update, with stand-ins for vLLM's model runner and its layers."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from actors.weight_receiver import WeightReceiver, tensor_checksums


class FakeRunner:
    def __init__(self, model):
        self.model = model
        self.reloaded = {}

    def reload_weights(self, weights_iterator):
        self.reloaded = dict(weights_iterator)

    def get_model(self):
        return self.model


class PackedHead:
    """A layer that counts how often it was packed; it is its own quantisation method."""

    def __init__(self, weight):
        self.weight = weight
        self.quant_method = self
        self.packed = 0

    def process_weights_after_loading(self, layer):
        assert layer is self
        self.packed += 1


def receiver(model):
    worker = WeightReceiver()
    worker.model_runner = FakeRunner(model)
    return worker


def model_with(head, embedding):
    return SimpleNamespace(lm_head=head, model=SimpleNamespace(embed_tokens=embedding))


@pytest.fixture
def payload(tmp_path):
    path = tmp_path / "payload"
    path.write_bytes(save({"a": torch.ones(2, 3), "b": torch.zeros(1)}))
    return path


def test_every_tensor_is_reloaded_and_the_receipt_describes_the_file(payload):
    worker = receiver(SimpleNamespace())
    receipt = worker.load_safetensors(str(payload))
    data = payload.read_bytes()
    ones = zlib.crc32(struct.pack("<6f", *[1.0] * 6), zlib.crc32(b"F32 [2, 3]"))
    zero = zlib.crc32(struct.pack("<f", 0.0), zlib.crc32(b"F32 [1]"))
    assert receipt == {"num_bytes": len(data), "checksums": {"a": ones, "b": zero}}
    assert worker.model_runner.reloaded.keys() == {"a", "b"}
    assert torch.equal(worker.model_runner.reloaded["a"], torch.ones(2, 3))


def test_a_tied_head_is_packed_again(payload):
    weight = torch.ones(4, 2)
    head = PackedHead(weight)
    receiver(model_with(head, SimpleNamespace(weight=weight))).load_safetensors(str(payload))
    assert head.packed == 1


def test_a_head_of_its_own_is_left_alone(payload):
    head = PackedHead(torch.ones(4, 2))
    receiver(model_with(head, SimpleNamespace(weight=torch.ones(4, 2)))).load_safetensors(str(payload))
    assert head.packed == 0


def test_a_head_that_is_the_embedding_itself_needs_no_packing(payload):
    head = PackedHead(torch.ones(4, 2))
    receiver(model_with(head, head)).load_safetensors(str(payload))
    assert head.packed == 0


def test_a_checksum_depends_on_values_shape_dtype_and_nothing_else():
    def checksum(tensor, **others):
        return tensor_checksums(save({"a": tensor, **others}, metadata={"format": "pt"}))["a"]

    reference = checksum(torch.zeros(2, 3))
    assert checksum(torch.zeros(2, 3), b=torch.ones(9)) == reference
    assert checksum(torch.zeros(3, 2)) != reference
    assert checksum(torch.zeros(2, 3, dtype=torch.int32)) != reference
    assert checksum(torch.full((2, 3), 1e-30)) != reference
