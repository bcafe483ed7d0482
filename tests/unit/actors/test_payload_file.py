"""The file through which a worker process reads new weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.payload_file import payload_file

PAYLOAD = np.arange(256, dtype=np.uint8)


def test_the_file_holds_the_payload_and_is_gone_afterwards():
    with payload_file(PAYLOAD) as path:
        assert Path(path).read_bytes() == bytes(range(256))
    assert not Path(path).exists()


def test_the_file_is_gone_after_a_failure_as_well():
    with pytest.raises(RuntimeError), payload_file(PAYLOAD) as path:
        raise RuntimeError("the engine died")
    assert not Path(path).exists()


def test_only_the_owner_can_read_the_file():
    with payload_file(PAYLOAD) as path:
        assert Path(path).stat().st_mode & 0o077 == 0


def test_a_read_only_payload_of_the_object_store_is_written():
    payload = PAYLOAD.copy()
    payload.flags.writeable = False
    with payload_file(payload) as path:
        assert Path(path).stat().st_size == 256
