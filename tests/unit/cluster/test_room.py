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
            "checkpoint": {"keep_last": 2},
        }
    )


def test_a_trial_leaves_nothing_but_the_folder_of_the_checkpoints(folder, config):
    check_room(folder, config, str(BASE))
    assert [path.name for path in folder.path.rglob("*")] == ["checkpoints"]


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
