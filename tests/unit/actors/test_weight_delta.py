"""Weights for another host: whole or changes, exact either way."""

from __future__ import annotations

import numpy as np
import pytest

from actors.weights.delta import Changes, HostCopy, changed_payload, whole_payload
from actors.weights.segment import SegmentReader
from actors.weights.update import TensorRecord, WeightUpdate, WeightVersionError


def update(version):
    a = TensorRecord(name="a", dtype="float32", shape=(100,), num_bytes=400, checksum=0)
    b = TensorRecord(name="b", dtype="bfloat16", shape=(4,), num_bytes=8, checksum=0)
    return WeightUpdate(version=version, path="elsewhere", tensors=(a, b))


def memory(**values):
    """A segment of 400 bytes of `a`, padding, and 8 bytes of `b`."""
    data = np.zeros(512, np.uint8)
    for index, value in values.get("a", {}).items():
        data[:400].view(np.float32)[index] = value
    data[448:456] = np.array(values.get("b", [0] * 4), np.uint16).view(np.uint8)
    return data


def held(copy, payload):
    written = copy.write(payload)
    return np.frombuffer(SegmentReader().map(written.path, 456), np.uint8)[:456]


def test_only_values_that_changed_travel():
    payload = changed_payload(update(2), memory(a={3: 1.5, 50: -2.0}), update(1), memory(a={3: 1.0}))
    part = payload.tensors[0]
    assert isinstance(part, Changes)
    assert part.indices.tolist() == [3, 50]
    assert part.values.view(np.float32).tolist() == [1.5, -2.0]
    assert (payload.num_bytes, payload.base_version) == (16, 1)


def test_a_tensor_that_changed_too_much_travels_whole():
    payload = changed_payload(update(2), memory(b=[1, 2, 3, 4]), update(1), memory())
    assert payload.tensors[1].tolist() == [1, 0, 2, 0, 3, 0, 4, 0]
    assert payload.num_bytes == 8


def test_a_zero_that_changes_its_sign_is_a_change():
    payload = changed_payload(update(2), memory(a={7: -0.0}), update(1), memory())
    assert payload.tensors[0].indices.tolist() == [7]


def test_a_host_rebuilds_the_weights_bit_for_bit_over_several_versions():
    first, second, third = memory(a={0: 1.0}, b=[1, 2, 3, 4]), memory(a={0: 1.0, 9: np.nan}), memory(a={99: -0.0})
    copy = HostCopy()
    assert (held(copy, whole_payload(update(1), first)) == first[:456]).all()
    assert (held(copy, changed_payload(update(2), second, update(1), first)) == second[:456]).all()
    assert (held(copy, changed_payload(update(3), third, update(2), second)) == third[:456]).all()


def test_a_payload_that_comes_twice_is_written_once():
    copy = HostCopy()
    copy.write(whole_payload(update(1), memory()))
    payload = changed_payload(update(2), memory(a={1: 1.0}), update(1), memory())
    assert copy.write(payload) == copy.write(payload)


def test_changes_against_weights_that_are_not_there_are_refused():
    payload = changed_payload(update(3), memory(), update(2), memory())
    copy = HostCopy()
    with pytest.raises(WeightVersionError, match=r"changes against version 2, but this host holds version None"):
        copy.write(payload)
    copy.write(whole_payload(update(1), memory()))
    with pytest.raises(WeightVersionError, match=r"this host holds version 1; send them whole"):
        copy.write(payload)
