"""The sending side of a weight update, on a source without ranks."""

from __future__ import annotations

import pytest
import torch

from actors.weights.tensors import described, mapped_tensors
from actors.weights.update import BUCKET_BYTES, SegmentReader, TensorRecord, WeightGroup
from learner.weights.finite import NonFiniteWeights, is_finite
from learner.weights.sender import WeightSender, WeightSource


class FakeSource(WeightSource):
    """Holds whole tensors."""

    def __init__(self, **tensors) -> None:
        self.tensors = tensors
        self._parameters = [*tensors.items()]
        self.num_passes = 0

    def __iter__(self):
        self.num_passes += 1
        yield from self.tensors.items()


def source():
    return FakeSource(a=torch.arange(6.0).reshape(2, 3), b=torch.full((5,), 1.5, dtype=torch.bfloat16))


def read(update):
    memory = SegmentReader().map(update.source, update.segment_bytes)
    return {name: tensor.clone() for name, tensor in mapped_tensors(memory, update.tensors)}


def test_what_is_published_can_be_mapped():
    weights = source()
    sender = WeightSender(weights, is_root=True, every_byte=False)
    update = sender.publish(3)
    assert (update.version, update.num_bytes, update.segment_bytes) == (3, 34, 128)
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in read(update).items())
    assert update.tensors[0] == described("a", weights.tensors["a"], version=3, stride=64)


def test_the_other_ranks_take_part_and_publish_nothing():
    weights = source()
    assert WeightSender(weights, is_root=False, every_byte=False).publish(1) is None
    assert weights.num_passes == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_not_published(value):
    weights = source()
    weights.tensors["b"][3] = value
    sender = WeightSender(weights, is_root=True, every_byte=False)
    with pytest.raises(
        NonFiniteWeights,
        match=r"^learner: weight update 4: tensor b holds NaN or infinite values, .*no engine; .*--resume",
    ):
        sender.publish(4)
    assert weights.num_passes == 1, "the other ranks gather every tensor, so this one does as well"


def test_finite_weights_whose_sum_overflows_are_finite():
    assert is_finite(torch.full((4,), 3e38))


def test_a_version_stays_readable_while_the_next_one_is_written_and_its_memory_is_used_again():
    weights = source()
    sender = WeightSender(weights, is_root=True, every_byte=False)
    first = sender.publish(1)
    before = read(first)
    weights.tensors["a"] += 1
    second = sender.publish(2)
    assert torch.equal(read(first)["a"], before["a"])
    assert torch.equal(read(second)["a"], before["a"] + 1)
    third = sender.publish(3)
    assert (second.source != first.source, third.source == first.source) == (True, True)


def test_what_travels_holds_changes_against_the_version_before_where_there_is_one():
    weights = FakeSource(a=torch.zeros(100))
    sender = WeightSender(weights, is_root=True, every_byte=True)
    sender.publish(1)
    assert sender.with_values(1, delta=True).base_version is None
    weights.tensors["a"][3] = 1.0
    update = sender.publish(2)
    travelling = sender.with_values(2, delta=True)
    assert travelling.source[0]["index"].tolist() == [3]
    assert (travelling.base_version, travelling.num_travelling_bytes, update.stride) == (1, 8, 1)
    assert sender.with_values(2, delta=False).num_travelling_bytes == 400
    assert travelling.tensors == update.tensors


def test_a_version_that_was_written_over_is_refused_by_name():
    sender = WeightSender(source(), is_root=True, every_byte=False)
    for version in (1, 2, 3):
        sender.publish(version)
    with pytest.raises(ValueError, match=r"weights of version 1 were overwritten; the learner holds \[2, 3\]"):
        sender.with_values(1, delta=False)


def test_the_announcement_of_a_group_describes_the_tensors_without_their_values():
    sender = WeightSender(source(), is_root=True, every_byte=False)
    announcement = sender.open_group(
        7, host="127.0.0.1", num_receivers=3, epoch=2, timeout_s=1.0, device=torch.device("cpu")
    )
    assert isinstance(announcement.source, WeightGroup)
    assert (announcement.version, announcement.first_rank, announcement.source.world_size) == (7, 1, 4)
    assert announcement.tensors == (
        TensorRecord(name="a", dtype="float32", shape=(2, 3), num_bytes=24),
        TensorRecord(name="b", dtype="bfloat16", shape=(5,), num_bytes=10),
    )


def test_a_bucket_holds_parameters_up_to_its_size_in_their_order_and_tied_ones_once():
    module = torch.nn.ModuleDict({name: torch.nn.Linear(1, n, bias=False, device="meta") for name, n in SIZES.items()})
    module["tied"].weight = module["a"].weight
    buckets = [[name for name, _ in bucket] for bucket in WeightSource(module)._buckets()]
    assert buckets == [["a.weight", "b.weight"], ["c.weight"], ["d.weight"]]


QUARTER = BUCKET_BYTES // 16
SIZES = {"a": QUARTER, "b": 3 * QUARTER, "c": 9 * QUARTER, "d": 1, "tied": 1}
