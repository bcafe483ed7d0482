"""Tensors on their way into the engine: laid out, mapped, recorded, and the tied head packed again."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.weights.tensors import check_all_loaded, described, mapped_tensors, recorded, repack_tied_head
from actors.weights.update import Segment, SegmentReader, TensorRecord, WeightGroup, WeightUpdate, segment_offsets


class PackedHead:
    """A layer that counts how often it was packed; it is its own quantisation method."""

    def __init__(self, weight):
        self.weight = weight
        self.quant_method = self
        self.packed = 0

    def process_weights_after_loading(self, layer):
        assert layer is self
        self.packed += 1


def model_with(head, embedding):
    return SimpleNamespace(lm_head=head, model=SimpleNamespace(embed_tokens=embedding))


def checksum(tensor, version=0, stride=64):
    return described("a", tensor, version=version, stride=stride).checksum


def floats(name, *shape):
    return TensorRecord(name=name, dtype="float32", shape=shape, num_bytes=4 * int(np.prod(shape)))


def test_tensors_start_at_multiples_of_64_bytes():
    bytes_long = [TensorRecord(name="a", dtype="uint8", shape=(n,), num_bytes=n) for n in (4, 64, 65, 0)]
    assert segment_offsets(bytes_long) == (0, 64, 128, 256, 256)


def test_an_update_knows_where_its_tensors_lie():
    update = WeightUpdate(version=1, source="p", tensors=(floats("a", 3), floats("b", 20)))
    assert (update.offsets, update.segment_bytes, update.num_bytes) == ((0, 64), 192, 92)
    assert [tensor.item_bytes for tensor in update.tensors] == [4, 4]
    assert [len(piece) for piece in update.pieces(np.zeros(192, np.uint8))] == [12, 80]


@pytest.mark.parametrize("source", ["p", WeightGroup(host="h", port=1, world_size=3, epoch=2, timeout_s=5.0)])
def test_an_update_is_the_same_after_its_fields_went_through_json(source):
    update = WeightUpdate(version=1, source=source, tensors=(floats("a", 3, 2),), first_rank=2, stride=1)
    found = WeightUpdate.of(json.loads(json.dumps(asdict(update))))
    assert asdict(found) == asdict(update)
    assert (type(found.source), found.tensors) == (type(source), update.tensors)


def test_mapped_tensors_are_those_that_were_laid_out():
    segment = Segment(128)
    segment.data[:12] = np.array([1.0, 2.0, 3.0], np.float32).view(np.uint8)
    segment.data[64:72] = np.frombuffer(
        torch.tensor([[1.5, -2.0], [0.0, 4.0]]).bfloat16().view(torch.uint8).numpy(), np.uint8
    )
    records = [floats("a", 3), TensorRecord(name="b", dtype="bfloat16", shape=(2, 2), num_bytes=8)]
    a, b = mapped_tensors(SegmentReader().map(segment.path, 128), records)
    assert a[0] == "a"
    assert torch.equal(a[1], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(b[1].float(), torch.tensor([[1.5, -2.0], [0.0, 4.0]]))


def test_a_record_describes_the_tensor():
    record = described("a", torch.ones(2, 3, dtype=torch.bfloat16), version=1, stride=64)
    assert (record.name, record.dtype, record.shape, record.num_bytes) == ("a", "bfloat16", (2, 3), 12)
    assert record.checksum == zlib.crc32(np.full(6, 0x3F80, np.uint16).tobytes())


def test_small_tensors_are_checksummed_as_a_whole():
    zeros = torch.zeros(16384)
    for position in (0, 9000, 16383):
        changed = zeros.clone()
        changed[position] = 1e-30
        assert checksum(changed) != checksum(zeros)


def test_the_sampled_blocks_of_a_large_tensor_move_with_the_version():
    zeros = torch.zeros(100 * 1024)  # 100 blocks of 4096 bytes
    changed = zeros.clone()
    changed[5 * 1024] = 1.0  # in block 5
    seen = [version for version in range(8) if checksum(changed, version, 4) != checksum(zeros, version, 4)]
    assert seen == [1, 5]


def test_with_stride_1_every_byte_counts():
    zeros = torch.zeros(100 * 1024)
    changed = zeros.clone()
    changed[5 * 1024 + 3] = 1.0
    assert checksum(changed, stride=1) != checksum(zeros, stride=1)


def test_the_first_and_the_last_block_always_count():
    zeros = torch.zeros(100 * 1024 + 7)
    for position in (0, -1):
        changed = zeros.clone()
        changed[position] = 1.0
        assert checksum(changed, version=3) != checksum(zeros, version=3)


def test_tensors_that_go_by_are_written_down():
    records = []
    passed = list(recorded([("a", torch.zeros(2)), ("b", torch.ones(3))], records, version=0, stride=1))
    assert [name for name, _ in passed] == [record.name for record in records] == ["a", "b"]


def test_a_tied_head_is_packed_again():
    weight = torch.ones(4, 2)
    head = PackedHead(weight)
    repack_tied_head(model_with(head, SimpleNamespace(weight=weight)))
    assert head.packed == 1


def test_a_head_of_its_own_is_left_alone():
    head = PackedHead(torch.ones(4, 2))
    repack_tied_head(model_with(head, SimpleNamespace(weight=torch.ones(4, 2))))
    assert head.packed == 0


def test_a_head_that_is_the_embedding_itself_needs_no_packing():
    head = PackedHead(torch.ones(4, 2))
    repack_tied_head(model_with(head, head))
    assert head.packed == 0


def test_a_parameter_without_new_values_is_named():
    check_all_loaded({"a", "b"}, {"a", "b", "c"})
    with pytest.raises(ValueError, match=r"parameter b of the engine \(and 1 others\) got no new values"):
        check_all_loaded({"a", "b", "c"}, {"a"})
