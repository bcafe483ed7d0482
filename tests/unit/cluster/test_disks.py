"""What a node must see before anything is loaded; two nodes are two folders here, and a link where they share one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.model_folder import model_digest
from cluster.processes import disks
from cluster.processes.disks import ModelSight, look, tokens
from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"
WAY_OUT = "give a folder that every node sees with --run-dir, or set checkpoint.storage"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(disks, "seen", lambda found: found())
    monkeypatch.setattr("curriculum.shared_folder.PATIENCE_S", 0.0)
    monkeypatch.setattr(SharedFolder, "is_here", lambda folder: folder.path is None or folder.path.is_dir())


@pytest.fixture
def model(tmp_path):
    """A copy of the model, as a node has it, and what the driver expects there."""
    path = tmp_path / "model"
    shutil.copytree(BASE, path)
    return ModelSight(key="model.path", path=str(path), digest=model_digest(str(BASE)))


def places(folder: Path) -> dict[str, SharedFolder]:
    folder.mkdir(exist_ok=True)
    return {"run folder": SharedFolder(str(folder))}


def test_a_node_that_sees_all_says_so_and_its_answer_is_seen(model, tmp_path):
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):
        assert look("a", [model], [sight], {}) is None
        assert sight.fault_of_answer("a") is None
    assert list((tmp_path / "run").iterdir()) == []


def test_a_model_that_is_missing_or_another_one_is_told_with_its_key(model):
    (Path(model.path) / "config.json").write_text("{}")
    assert look("a", [model], [], {}) == (
        f"model.path={model.path!r}: has other files there than at the driver; put it on a disk that every node sees, "
        "or there on every node"
    )
    shutil.rmtree(model.path)
    assert f"model.path={model.path!r}: is not there; put it on a disk that every node sees" in look(
        "a", [model], [], {}
    )


def test_a_run_folder_that_is_missing_on_a_node_is_told_and_nothing_is_made_there(tmp_path):
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):
        hidden = replace(sight, place=SharedFolder(str(tmp_path / "node" / "run")))
        assert look("a", [], [hidden], {}) == (
            f"run folder: {tmp_path}/node/run is not the folder that the driver sees; {WAY_OUT}"
        )
    assert not (tmp_path / "node").exists()


def test_a_folder_of_the_same_name_on_another_disk_is_not_taken_for_it(tmp_path):
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):
        other = replace(sight, place=places(tmp_path / "other")["run folder"])
        assert "is not the folder that the driver sees" in look("a", [], [other], {})
    assert list((tmp_path / "other").iterdir()) == []


def test_what_a_node_writes_where_the_driver_does_not_look_is_told(tmp_path):
    """The node has an old copy of the folder, token included, as behind a mount that is no longer there."""
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert look("a", [], [replace(sight, place=SharedFolder(str(tmp_path / "copy")))], {}) is None
        assert sight.fault_of_answer("a") == (
            f"run folder: what is written to {tmp_path}/run there is not seen by the driver; {WAY_OUT}"
        )


def test_a_node_that_may_not_write_says_why(tmp_path, monkeypatch):
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):

        def refuse(folder, name, blocks):
            raise UserError(f"{folder}/{name}: cannot be written (Permission denied); change its permissions")

        monkeypatch.setattr(SharedFolder, "write", refuse)
        assert "cannot be written (Permission denied)" in look("a", [], [sight], {})


def test_tokens_and_answers_go_even_if_a_node_fails(tmp_path):
    def fail():
        with tokens(places(tmp_path / "run"), ["a", "b"]) as (sight,):
            look("a", [], [sight], {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_storage_is_looked_at_in_the_same_way_and_its_empty_folder_goes_again(tmp_path):
    storage = {"checkpoint.storage": SharedFolder(f"file://{tmp_path}/shared/run")}
    with tokens(storage, ["a"]) as (sight,):
        assert look("a", [], [sight], {}) is None
        assert sight.fault_of_answer("a") is None
        (tmp_path / "shared" / "run" / sight.answer("a")).unlink()
        assert "checkpoint.storage: what is written to" in sight.fault_of_answer("a")
    assert list((tmp_path / "shared").iterdir()) == []


def test_what_a_killed_look_left_is_removed_at_the_next_start(tmp_path):
    """Its names are those of unfinished files."""
    with tokens(places(tmp_path / "run"), ["a"]) as (sight,):
        look("a", [], [sight], {})
        names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {sight.token, sight.answer("a")}
    assert all(name.startswith(".") and name.endswith(".partial") for name in names)
