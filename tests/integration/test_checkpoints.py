"""Damaged checkpoints: every flipped bit is noticed, and the run goes on from the newest whole one."""

from __future__ import annotations

import random
import shutil

import pytest

from cluster.run.checkpoints import Checkpoints
from curriculum.errors import UserError
from curriculum.seal import COMPLETE, DIGESTS

pytestmark = pytest.mark.integration

NUM_FLIPS = 40


def test_every_one_of_40_flipped_bits_is_noticed_by_the_name_of_its_file(reference, tmp_path):
    checkpoints, files = _only_the_newest(reference, tmp_path)
    rng = random.Random(0)
    for path in rng.choices(files, k=NUM_FLIPS):
        content = path.read_bytes()
        _flip_a_bit(path, rng)
        assert f" is damaged: {_named(path, checkpoints)}: its content has changed" in _refusal(checkpoints)
        path.write_bytes(content)
    assert checkpoints.choose(_nothing) is not None


def test_every_file_whose_last_quarter_is_zeros_or_missing_is_noticed(reference, tmp_path):
    checkpoints, files = _only_the_newest(reference, tmp_path)
    for path in files:
        content = path.read_bytes()
        kept = content[: len(content) * 3 // 4]
        for damaged in (kept, kept + bytes(len(content) - len(kept))):
            path.write_bytes(damaged)
            assert f" is damaged: {_named(path, checkpoints)}: " in _refusal(checkpoints)
        path.write_bytes(content)
    assert checkpoints.choose(_nothing) is not None


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_with_the_same_numbers(
    reference, workshop
):
    run = workshop.new_run("damaged")
    shutil.copytree(reference.folder, run.folder, symlinks=True, ignore=shutil.ignore_patterns("model", "summary.json"))
    *_, older, newest = sorted((run.folder / "checkpoints").iterdir())
    _flip_a_bit(newest / "learner" / "rank_00000.safetensors", random.Random(1))
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "sta')
    run.finish(workshop.resume(run))
    assert run.exit_statuses == [0], run.output[-4000:]
    assert f"{newest.name} is damaged: learner/rank_00000.safetensors: its content has changed" in run.output
    assert f"using {older.name}, the newest checkpoint that is whole" in run.output
    assert "metrics.jsonl: its last line was unfinished; removed 17 bytes" in run.output
    assert run.events("resumed")[-1]["checkpoint"] == older.name
    repeated = run.numbers[len(reference.numbers) :]
    assert repeated
    assert repeated == reference.numbers[-len(repeated) :]
    ours, theirs = (folder / "model" / "model.safetensors" for folder in (run.folder, reference.folder))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [path.name for path in (run.folder / "checkpoints").glob("*.aside")] == []


def _flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _only_the_newest(run, tmp_path):
    """A copy of the newest checkpoint, and its files."""
    newest = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
    shutil.copytree(newest, tmp_path / "checkpoints" / newest.name)
    return Checkpoints(tmp_path / "checkpoints"), sorted(
        path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()
    )


def _named(path, checkpoints):
    """The marker holds the digest of the digests; where they differ, nothing says which of the two is damaged."""
    name = path.relative_to(next(checkpoints.path.iterdir())).as_posix()
    return DIGESTS if name == COMPLETE else name


def _refusal(checkpoints):
    with pytest.raises(UserError) as caught:
        checkpoints.choose(lambda text: None)
    return str(caught.value)


def _nothing(text):
    raise AssertionError(text)
