"""A full disk is waited for, aloud and not forever."""

from __future__ import annotations

import asyncio

import pytest

from cluster.run.patience import Patience
from curriculum.files import DiskError, DiskFull


class Disk:
    """Full for the first `num` writes."""

    def __init__(self, num, error=DiskFull):
        self.num = num
        self.tries = 0
        self.error = error

    async def write(self):
        self.tries += 1
        if self.tries <= self.num:
            raise self.error("a: cannot be written (No space left on device); its disk is full; free some space")
        return "written"


def run(disk, *, limit_s=10.0, stopped=False):
    said = []

    async def main():
        stop = asyncio.Event()
        if stopped:
            stop.set()
        patience = Patience(said.append, stop, limit_s=limit_s, pauses_s=(0.001, 0.002))
        return await patience.until_room(disk.write)

    return asyncio.run(main()), said


def test_what_finds_room_is_written_without_a_word():
    assert run(Disk(0)) == ("written", [])


def test_a_full_disk_is_tried_again_with_growing_pauses_and_every_pause_is_told():
    result, said = run(Disk(3))
    assert result == "written"
    why = "a: cannot be written (No space left on device); its disk is full; free some space; trying again in"
    assert said == [f"{why} {pause} s, for 10 s more" for pause in ("0.001", "0.002", "0.002")]


def test_after_the_limit_the_refusal_is_raised():
    disk = Disk(10_000)
    with pytest.raises(DiskFull):
        run(disk, limit_s=0.05)
    assert 2 < disk.tries < 60


def test_a_run_that_is_to_stop_does_not_wait():
    disk = Disk(1)
    with pytest.raises(DiskFull):
        run(disk, stopped=True)
    assert disk.tries == 1


def test_a_read_only_disk_is_not_waited_for():
    with pytest.raises(DiskError):
        run(Disk(1, DiskError))
