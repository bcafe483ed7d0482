"""Members of a weight group on gloo, as threads of one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.weights.tensors import GroupMember, host_store, join_store, received, tensors_in
from actors.weights.update import BUCKET_BYTES, TensorRecord, WeightGroup, WeightGroupError, bucket_slices
from learner.weights.sender import WeightSource, broadcast, packed

CPU = torch.device("cpu")
LARGE = BUCKET_BYTES // 4 * 3 // 4
"""Values of a float32 tensor that fills three quarters of a bucket."""


class FakeSource(WeightSource):
    """Whole tensors, in the buckets in which they would be gathered."""

    def __init__(self, **tensors) -> None:
        self._parameters = [*tensors.items()]

    def buckets(self):
        yield from self._buckets()


def group(world_size, *, timeout_s=20.0):
    store = host_store("127.0.0.1", timeout_s)
    group = WeightGroup(host="127.0.0.1", port=store.port, world_size=world_size, epoch=1, timeout_s=timeout_s)
    stores = [store, *(join_store(group) for _ in range(1, world_size))]
    return [GroupMember(store, group, rank=rank, device=CPU) for rank, store in enumerate(stores)]


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def failure(call):
    def run():
        with pytest.raises(WeightGroupError) as caught:
            call()
        return str(caught.value)

    return run


def receive(member, records):
    return {name: tensor.clone() for name, tensor in received(member, records)}


def bytes_long(num_bytes):
    return TensorRecord(name="a", dtype="uint8", shape=(num_bytes,), num_bytes=num_bytes)


def test_tensors_are_cut_into_runs_of_a_bucket_and_a_larger_one_is_alone():
    third = BUCKET_BYTES // 3
    cuts = bucket_slices([bytes_long(n) for n in (third, third, third, third, 2 * BUCKET_BYTES, 1)])
    assert [(cut.start, cut.stop) for cut in cuts] == [(0, 3), (3, 4), (4, 5), (5, 6)]
    assert list(bucket_slices([])) == []


def test_packed_tensors_are_found_again_where_they_lie():
    tensors = [torch.tensor([1.5, -2.0]).bfloat16(), torch.arange(6.0).reshape(2, 3), torch.tensor(7)]
    source = FakeSource(a=tensors[0], b=tensors[1], c=tensors[2])
    buffer = packed(next(source.buckets()), CPU)
    assert buffer.nbytes == 3 * 64
    found = list(tensors_in(buffer, source.records()))
    assert [name for name, _ in found] == ["a", "b", "c"]
    assert all(torch.equal(ours, theirs) for ours, (_, theirs) in zip(tensors, found, strict=True))


def test_every_member_receives_what_the_first_one_sends_in_all_buckets():
    source = FakeSource(
        a=torch.rand(LARGE),
        b=torch.rand(LARGE),
        c=torch.ones(3, dtype=torch.bfloat16),
        d=torch.rand(LARGE),
        e=torch.rand(2),
    )
    records = source.records()
    assert len(list(source.buckets())) == 3
    sender, *receivers = group(3)
    sent, *found = at_once(
        lambda: [name for name, _ in broadcast(source, sender)],
        *[lambda member=member: receive(member, records) for member in receivers],
    )
    assert sent == ["a", "b", "c", "d", "e"]
    for tensors in found:
        assert all(torch.equal(tensors[name], tensor) for name, tensor in source)


def test_a_member_that_does_not_come_is_missed_by_its_rank():
    first, second, _ = group(3, timeout_s=0.5)
    for message in at_once(failure(first.connect), failure(second.connect)):
        assert "did not form within 0.5 s: ranks [2] did not join" in message


@pytest.mark.timeout(60)  # if nobody gave up, this would not end
def test_a_member_that_stands_still_is_given_up_by_all_others():
    source = FakeSource(**{name: torch.rand(LARGE) for name in "abcd"})
    sender, receiver, still = group(3, timeout_s=0.5)
    *_, ours, theirs = at_once(
        still.connect,
        failure(lambda: list(broadcast(source, sender))),
        failure(lambda: receive(receiver, source.records())),
    )
    assert "weight group 1 is broken" in ours
    assert "weight group 1 is broken" in theirs


def test_a_store_that_is_not_there_is_named():
    with pytest.raises(WeightGroupError, match=r"the learner's store at 127\.0\.0\.1:1 does not answer"):
        join_store(WeightGroup(host="127.0.0.1", port=1, world_size=2, epoch=1, timeout_s=0.2))


def test_a_member_that_has_left_sends_nothing_more():
    (member,) = group(1)
    member.close()
    with pytest.raises(WeightGroupError, match="weight group 1 was closed after an error; resume"):
        member.start(torch.zeros(1))
