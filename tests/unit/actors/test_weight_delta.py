"""Weights for another host: whole or changes, exact either way."""

from __future__ import annotations

import numpy as np
import pytest

from actors.weights.update import (
    HostCopy,
    Segment,
    SegmentReader,
    TensorRecord,
    WeightGroup,
    WeightUpdate,
    WeightVersionError,
)
from learner.weights.sender import carrying_values


def update(version, source="elsewhere"):
    a = TensorRecord(name="a", dtype="float32", shape=(100,), num_bytes=400, checksum=0)
    b = TensorRecord(name="b", dtype="bfloat16", shape=(4,), num_bytes=8, checksum=0)
    return WeightUpdate(version=version, tensors=(a, b), source=source)


def memory(**values):
    """A segment of 400 bytes of `a`, padding, and 8 bytes of `b`."""
    segment = Segment(512)
    for index, value in values.get("a", {}).items():
        segment.data[:400].view(np.float32)[index] = value
    segment.data[448:456] = np.array(values.get("b", [0] * 4), np.uint16).view(np.uint8)
    return segment


def whole(version, segment):
    return carrying_values(update(version), segment, base=None)


def changed(version, segment, base_segment):
    return carrying_values(update(version), segment, base=(update(version - 1), base_segment))


def held(copy, sent):
    written = copy.write(sent)
    return np.frombuffer(SegmentReader().map(written.source, 456), np.uint8)[:456]


def test_only_values_that_changed_travel():
    sent = changed(2, memory(a={3: 1.5, 50: -2.0}), memory(a={3: 1.0}))
    part = sent.source[0]
    assert part["index"].tolist() == [3, 50]
    assert part["value"].view(np.float32).tolist() == [1.5, -2.0]
    assert (sent.num_travelling_bytes, sent.base_version) == (16, 1)


def test_a_tensor_that_changed_too_much_travels_whole():
    sent = changed(2, memory(b=[1, 2, 3, 4]), memory())
    assert sent.source[1].tolist() == [1, 0, 2, 0, 3, 0, 4, 0]
    assert sent.num_travelling_bytes == 8


def test_a_change_of_a_value_of_two_bytes_takes_six():
    wide = TensorRecord(name="a", dtype="bfloat16", shape=(8,), num_bytes=16, checksum=0)
    sent, base = (WeightUpdate(version=v, tensors=(wide,), source="elsewhere") for v in (2, 1))
    new, old = Segment(16), Segment(16)
    new.data[6:8] = 1
    travelling = carrying_values(sent, new, base=(base, old))
    assert travelling.source[0].tolist() == [(3, 0x0101)]
    assert travelling.num_travelling_bytes == 6


def test_a_zero_that_changes_its_sign_is_a_change():
    sent = changed(2, memory(a={7: -0.0}), memory())
    assert sent.source[0]["index"].tolist() == [7]


def test_a_host_rebuilds_the_weights_bit_for_bit_over_several_versions():
    first, second, third = memory(a={0: 1.0}, b=[1, 2, 3, 4]), memory(a={0: 1.0, 9: np.nan}), memory(a={99: -0.0})
    copy = HostCopy()
    assert (held(copy, whole(1, first)) == first.data[:456]).all()
    assert (held(copy, changed(2, second, first)) == second.data[:456]).all()
    assert (held(copy, changed(3, third, second)) == third.data[:456]).all()


def test_values_that_come_twice_are_written_once():
    copy = HostCopy()
    copy.write(whole(1, memory()))
    sent = changed(2, memory(a={1: 1.0}), memory())
    first, second = copy.write(sent), copy.write(sent)
    assert first.source == second.source
    assert (first.version, first.base_version, first.num_travelling_bytes) == (2, None, 0)


def test_an_update_that_says_where_its_values_lie_is_left_as_it_is():
    group = WeightGroup(host="h", port=1, world_size=2, epoch=1, timeout_s=1.0)
    for sent in (update(1, "/proc/1/fd/2"), update(1, group)):
        assert HostCopy().write(sent) is sent
        assert sent.num_travelling_bytes == 0


def test_changes_against_weights_that_are_not_there_are_refused():
    sent = changed(3, memory(), memory())
    copy = HostCopy()
    with pytest.raises(WeightVersionError, match=r"changes from version 2, but this host holds version None"):
        copy.write(sent)
    copy.write(whole(1, memory()))
    with pytest.raises(WeightVersionError, match=r"this host holds version 1; send them whole"):
        copy.write(sent)
