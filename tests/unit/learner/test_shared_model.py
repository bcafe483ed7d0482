"""A model that one rank writes and all read, through a storage: nothing stays in the scratch folders of the nodes."""

import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch.distributed as dist
from fsspec.implementations.memory import MemoryFileSystem

from curriculum.errors import UserError
from curriculum.files import DiskError
from curriculum.shared_folder import SharedFolder
from learner.zero3.shared_model import model_nearby, publish_model

FILES = {"config.json": "{}", "model.safetensors": "weights"}
BUCKET = SharedFolder("memory://bucket/run/reference-1")


@pytest.fixture(scope="module", autouse=True)
def _a_rank_of_one(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder in which scratch folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    MemoryFileSystem.store.clear()


def write(path: Path) -> None:
    path.mkdir()
    for name, text in FILES.items():
        (path / name).write_text(text)


def read(path: str) -> dict[str, str]:
    return {file.name: file.read_text() for file in Path(path).iterdir()}


def test_through_a_storage_every_file_is_told_and_fetched_and_no_scratch_is_left(scratch):
    written = publish_model(BUCKET, write, rank=0)
    assert {name: BUCKET.digest(name) for name in FILES} == written
    assert list(scratch.iterdir()) == []
    with model_nearby(BUCKET, node="a", rank=0) as path:
        assert read(path) == FILES
        assert Path(path).parent == scratch
    assert list(scratch.iterdir()) == []


def test_on_a_shared_disk_nothing_is_copied(tmp_path, scratch):
    place = SharedFolder(str(tmp_path / "reference"))
    written = publish_model(place, write, rank=0)
    assert written.keys() == FILES.keys()
    with model_nearby(place, node="a", rank=0) as path:
        assert path == str(tmp_path / "reference")
    assert list(scratch.iterdir()) == []


def test_a_rank_that_does_not_see_the_folder_of_the_driver_makes_none_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("learner.zero3.shared_model.seen", lambda found: found())
    with pytest.raises(DiskError, match=r"reference: rank 0 does not see the folder of the driver; give one that"):
        publish_model(SharedFolder(str(tmp_path / "hidden" / "reference")), write, rank=0)
    assert not (tmp_path / "hidden").exists()


def test_a_scratch_disk_without_room_is_told_before_anything_is_fetched(scratch, monkeypatch):
    publish_model(BUCKET, write, rank=0)
    usage = namedtuple("Usage", "total used free")(0, 0, 5)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with (
        pytest.raises(UserError, match=r"takes 0\.0 MB there while it is read, 0\.0 MB are free; free some"),
        model_nearby(BUCKET, node="a", rank=0),
    ):
        pass
    assert list(scratch.iterdir()) == []
