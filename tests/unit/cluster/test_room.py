"""What the end of a run needs is tried at its beginning."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from cluster.recipe.config import RunConfig
from cluster.run.folder import RunFolder
from cluster.run.room import check_room, told_what_is_whole
from curriculum.errors import UserError
from curriculum.files import DiskError, file_errors

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def config():
    return RunConfig.model_validate(
        {
            "name": "test",
            "device": "cpu",
            "model": {"path": str(BASE)},
            "data": {"sft": "none.jsonl"},
            "sft": {"epochs": 1},
            "checkpoint": {"keep": {"last": 2}},
        }
    )


def with_phases(config, **keep):
    """The same run with three phases behind its warm-up."""
    names = ("one", "two", "three")
    phases = [
        {"name": name, "max_prompt_tokens": 10 + index, "end": {"type": "steps", "steps": 1}}
        for index, name in enumerate(names)
    ]
    values = config.model_dump(mode="json")
    data = {**values["data"], "train": "none.jsonl", "evaluation": "none.jsonl"}
    changed = {"curriculum": {"phases": phases}, "data": data, "checkpoint": {"keep": {"last": 2, **keep}}}
    return RunConfig.model_validate({**values, **changed})


def test_a_trial_leaves_nothing_but_the_folders_of_checkpoints_and_models(folder, config):
    check_room(folder, config, str(BASE))
    assert sorted(path.name for path in folder.path.rglob("*")) == ["checkpoints", "models"]


@pytest.mark.parametrize(
    ("keep", "megabytes", "words"),
    [
        (
            {},
            6 * 12 + 4 * 4,
            "checkpoint.keep.last=2, one more while it is written, checkpoints and models of 4 stages",
        ),
        ({"stages": False}, 3 * 12 + 4, "checkpoint.keep.last=2, one more while it is written, the model"),
        (
            {"best": "heldout/accuracy"},
            7 * 12 + 6 * 4,
            "checkpoints and models of 4 stages, those of the best step, the",
        ),
    ],
)
def test_the_space_counts_what_is_kept(folder, config, monkeypatch, keep, megabytes, words):
    """A million parameters: 12 MB for a checkpoint, 4 MB for a model; that of the last stage is the final one."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1_000_000 * megabytes - 1))
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000_000)
    with pytest.raises(UserError) as caught:
        check_room(folder, with_phases(config, **keep), str(BASE))
    assert f"will write {megabytes}.0 MB there (" in str(caught.value)
    assert words in str(caught.value)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1_000_000 * megabytes))
    check_room(folder, with_phases(config, **keep), str(BASE))


def test_a_model_on_another_disk_is_no_link_and_needs_room_there(folder, config, small_disk, monkeypatch):
    folder.model.symlink_to(small_disk / "model")
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000_000)
    with pytest.raises(UserError, match=r"disk: the run will write 4\.0 MB there"):
        check_room(folder, config, str(BASE))


def test_a_model_that_is_a_link_to_another_disk_is_tried_there(folder, config, tmp_path):
    folder.model.symlink_to(tmp_path / "disk" / "model")
    check_room(folder, config, str(BASE))
    assert folder.model.is_symlink()
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_model_that_cannot_be_written_is_told_at_the_beginning(folder, config, tmp_path):
    (tmp_path / "file").touch()
    folder.model.symlink_to(tmp_path / "file" / "model")
    with pytest.raises(UserError, match=r"run/model: cannot be written \(Not a directory\)"):
        check_room(folder, config, str(BASE))


def test_a_link_to_the_root_of_a_disk_is_refused(folder, config, small_disk):
    folder.model.symlink_to(small_disk)
    with pytest.raises(UserError, match="is a link to the root of a disk; let it point to a folder on that disk"):
        check_room(folder, config, str(BASE))


def test_too_little_space_is_told_with_both_sizes_and_the_way_out(folder, config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 10_000_000))
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000_000)
    with pytest.raises(
        UserError, match=r"will write 40\.0 MB there .*, 10\.0 MB are free; free some space, lower check"
    ):
        check_room(folder, config, str(BASE))


def test_checkpoints_that_are_there_already_need_no_room_again(folder, config, monkeypatch):
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 12_000 + 4_000))
    folder.checkpoints.path.mkdir()
    with pytest.raises(UserError, match="are free"):
        check_room(folder, config, str(BASE))
    (folder.checkpoints.path / "two").write_bytes(bytes(24_000))
    check_room(folder, config, str(BASE))


def in_storage(config, url):
    values = config.model_dump(mode="json")
    return RunConfig.model_validate({**values, "checkpoint": {**values["checkpoint"], "storage": url}})


def test_checkpoints_in_a_storage_of_objects_take_no_room_here(folder, config, monkeypatch):
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 4_000_000))
    monkeypatch.setattr("cluster.run.room._shared_disk", lambda folder, config: None)
    check_room(folder, in_storage(config, "s3://bucket/runs"), str(BASE))


def test_checkpoints_in_a_storage_on_a_disk_need_room_there(folder, config, small_disk, monkeypatch):
    monkeypatch.setattr("cluster.run.room.num_parameters", lambda path: 1_000_000)
    in_small = in_storage(config, f"file://{small_disk}")
    with pytest.raises(UserError, match=rf"^{small_disk}/run: the run will write 36\.0 MB there"):
        check_room(folder, in_small, str(BASE))


def test_a_model_of_the_hub_has_no_size_yet(folder, config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 0))
    check_room(folder, config, "owner/model")


def test_a_disk_that_refuses_in_the_middle_ends_in_one_line_that_says_what_is_whole(folder):
    def refuse():
        with told_what_is_whole(folder), file_errors(folder.path / "metrics.jsonl", "written"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = folder.path / "metrics.jsonl"
    line = f"{name}: cannot be written (No space left on device); its disk is full; free some space"
    with pytest.raises(DiskError, match=r"free some space$"):
        refuse()
    folder.recipe.touch()
    with pytest.raises(UserError) as caught:
        refuse()
    assert str(caught.value) == f"{line}, then go on with --resume {folder.path}: there is no checkpoint yet"
    (folder.checkpoints.path / "step-000005").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        refuse()
    assert str(caught.value) == f"{line}, then go on with --resume {folder.path}: checkpoint step-000005 is whole"
