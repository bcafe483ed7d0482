"""Memory that is shared by path, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actors.weights.update import Segment, SegmentReader


def test_what_is_written_is_read_through_the_path():
    segment = Segment(10)
    segment.data[:] = np.arange(10)
    assert SegmentReader().map(segment.path, 10)[:] == bytes(range(10))


def test_a_mapping_is_kept_and_shows_what_is_written_later():
    segment, reader = Segment(4), SegmentReader()
    mapped = reader.map(segment.path, 4)
    segment.data[:] = 9
    assert mapped[:] == b"\x09" * 4
    assert reader.map(segment.path, 4) is mapped


def test_a_path_that_comes_to_mean_other_memory_is_mapped_anew():
    segment, reader = Segment(4), SegmentReader()
    path = segment.path
    reader.map(path, 4)
    del segment
    other = Segment(4)
    other.data[:] = 5
    assert other.path == path
    assert reader.map(path, 4)[:] == b"\x05" * 4


def test_a_reader_cannot_change_the_segment():
    segment = Segment(4)
    with pytest.raises(TypeError, match="readonly"):
        SegmentReader().map(segment.path, 4)[0] = 1


def test_a_segment_without_bytes_can_be_mapped():
    segment = Segment(0)
    assert len(SegmentReader().map(segment.path, 0)) == 1


def test_a_segment_that_is_too_small_is_refused():
    segment = Segment(8)
    with pytest.raises(ValueError, match="has 8 bytes, fewer than the 9 that were announced"):
        SegmentReader().map(segment.path, 9)


def test_nothing_is_left_of_a_process_that_was_killed():
    script = """from actors.weights.update import Segment; s = Segment(100); s.data[:] = 7
print(s.path, flush=True); input()"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    path = owner.stdout.readline().strip()
    mapped = SegmentReader().map(path, 100)
    assert "/dev/shm" not in Path(f"/proc/{owner.pid}/maps").read_text(), "a file there would outlive its owner"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert mapped[:] == b"\7" * 100, "who has mapped it keeps it"
    with pytest.raises(FileNotFoundError):
        SegmentReader().map(path, 100)


def test_a_segment_that_nobody_holds_is_closed():
    path = Segment(4).path
    assert not os.path.exists(path)
