"""A run on a disk that gets full: it waits, goes on where there is room, and loses nothing either way."""

from __future__ import annotations

import asyncio
import json

import pyarrow.parquet as pq
import pytest

from cluster.run.patience import Patience
from curriculum.files import DiskFull
from curriculum.seal import check_seal

NUM_STEPS = 4
SHARD_BYTES = 100_000


class Filler:
    """Takes all room of a disk, and gives it back."""

    def __init__(self, disk):
        self.path = disk / "fill"

    def fill(self):
        with self.path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self):
        self.path.unlink(missing_ok=True)


@pytest.fixture
def filler(small_disk):
    return Filler(small_disk)


@pytest.fixture
def run(bench, small_disk, filler):
    """A run on the small disk, which is filled when the learner updates for the second time."""
    b = bench(
        accuracies=lambda lease: [1.0, 0.0],
        name="disk/run",
        checkpoint={"every_steps": 1, "keep": {"last": 2}},
        sft={"epochs": 0},
    )
    updates = []
    update = b.learner.update

    async def fill_and_update(learning_rate):
        updates.append(learning_rate)
        if len(updates) == 2:
            filler.fill()
        return await update(learning_rate)

    async def save(place):
        return {"shard": place.write("shard", [bytes(SHARD_BYTES)])}

    b.learner.update, b.learner.save = fill_and_update, save
    return b


def steps(run):
    text = (run.folder.path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_it_goes_on_when_there_is_room_and_every_line_answer_and_checkpoint_is_there(run, filler):
    said = []

    def say(text):
        said.append(text)
        if len(said) == 3:
            filler.free()

    run.patience = Patience(say, run.stop, limit_s=20.0, pauses_s=(0.001,))
    run.run()
    assert len(said) == 3
    assert all("cannot be written (No space left on device)" in line and "trying again in" in line for line in said)
    assert steps(run) == list(range(NUM_STEPS))
    tables = [pq.read_table(path) for path in sorted(run.folder.trajectories.iterdir())]
    assert [table["step"][0].as_py() for table in tables] == list(range(NUM_STEPS))
    checkpoint = run.folder.checkpoints.choose(pytest.fail)
    assert checkpoint.progress.step == NUM_STEPS


def test_a_disk_that_stays_full_ends_the_run_and_what_was_written_before_is_whole(run, filler):
    run.patience = Patience(lambda text: None, run.stop, limit_s=0.05, pauses_s=(0.001,))
    with pytest.raises(DiskFull, match="cannot be written"):
        run.run()
    assert steps(run) in ([0], [0, 1])
    check_seal(run.folder.checkpoints.newest())
    assert run.folder.checkpoints.choose(pytest.fail).progress.step == 1
    assert not [path for path in run.folder.path.rglob(".*") if path.name.endswith(".partial")]


def test_a_stop_ends_the_waiting_at_once(run, filler):
    async def main():
        loop = run.loop()
        await loop.run()

    def say(text):
        run.stop.set()

    run.patience = Patience(say, run.stop, limit_s=60.0, pauses_s=(30.0,))
    with pytest.raises(DiskFull):
        asyncio.run(asyncio.wait_for(main(), 20))
    assert run.folder.checkpoints.choose(pytest.fail).progress.step == 1
