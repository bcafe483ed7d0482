"""Lines of a run: whole or not at all, also on a disk that is full."""

from __future__ import annotations

import json
import resource
import signal
from contextlib import contextmanager

import pytest

from cluster.run.json_lines import JsonLines
from curriculum.errors import UserError
from curriculum.files import DiskFull


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def lines(tmp_path):
    return JsonLines(tmp_path / "metrics.jsonl")


@contextmanager
def full_disk(monkeypatch, room):
    """Writes beyond `room` bytes in all find no space; what still fits is written, as by a real disk."""
    import errno
    import os

    real, left = os.write, [room]

    def write(descriptor, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, data[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr("os.write", write)
        yield


def test_a_line_that_does_not_fit_leaves_no_part_of_itself_and_comes_later_in_its_turn(lines, monkeypatch):
    lines.append({"step": 0})
    with full_disk(monkeypatch, room=16):
        for step in (1, 2, 3):
            lines.append({"step": step})
        assert steps(lines.path) == [0, 1]
        with pytest.raises(DiskFull, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
            lines.flush()
    lines.append({"step": 4})
    assert steps(lines.path) == [0, 1, 2, 3, 4]


def test_any_other_refusal_is_told_at_once(tmp_path):
    with pytest.raises(UserError, match="make its folder first"):
        JsonLines(tmp_path / "gone" / "metrics.jsonl").append({"step": 0})


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', "\0" * 5000, '{"text": "' + "é" * 70_000])
def test_a_torn_last_line_is_cut_and_told(lines, torn):
    for step in (0, 1):
        lines.append({"step": step})
    with lines.path.open("a") as file:
        file.write(torn)
    assert lines.repair() == f"metrics.jsonl: its last line was unfinished; removed {len(torn.encode())} bytes"
    assert lines.repair() is None
    lines.append({"step": 2})
    assert steps(lines.path) == [0, 1, 2]


def test_a_file_that_is_one_torn_line_becomes_empty(lines):
    lines.path.write_text("{")
    assert lines.repair() == "metrics.jsonl: its last line was unfinished; removed 1 bytes"
    assert lines.path.read_text() == ""


def test_without_a_file_there_is_nothing_to_repair(lines):
    assert lines.repair() is None
    assert not lines.path.exists()


def test_a_limit_of_the_file_size_is_a_refusal_too(lines):
    lines.append({"step": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (lines.path.stat().st_size + 4, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            lines.append({"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert steps(lines.path) == [0]
