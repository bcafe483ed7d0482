"""The run folder: never overwritten, and a checkpoint counts when it is whole."""

from __future__ import annotations

import json

import pytest

from cluster.run.folder import COMPLETE, RunFolder
from curriculum.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run")


def save(folder, step, *, keep_last=2, content="state"):
    partial = folder.begin_checkpoint(step)
    (partial / "state.json").write_text(content)
    return folder.finish_checkpoint(partial, step, keep_last)


def names(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    assert RunFolder.create(tmp_path / "runs" / "a").path.is_dir()


def test_an_empty_folder_may_be_used(tmp_path):
    assert RunFolder.create(tmp_path).path == tmp_path


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"exists and is not empty; continue it with --resume .*--run-dir"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_not_a_run_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    with pytest.raises(UserError, match="is a file; choose a folder with --run-dir"):
        RunFolder.create(path)
    assert path.read_text() == "content"


def test_only_a_folder_with_a_recipe_can_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"no recipe.yaml there; give the folder of an earlier run"):
        RunFolder.open(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    assert RunFolder.open(tmp_path).path == tmp_path


def test_metrics_and_events_are_one_line_each(folder):
    folder.append_metrics({"step": 0, "loss": 1.5})
    folder.append_metrics({"step": 1, "loss": 1.0})
    folder.append_event("fault", actor="rollout-0", text="two\nlines, é")
    assert [json.loads(line)["loss"] for line in _lines(folder, "metrics.jsonl")] == [1.5, 1.0]
    (event,) = (json.loads(line) for line in _lines(folder, "events.jsonl"))
    assert event.keys() == {"time", "event", "actor", "text"}
    assert (event["event"], event["text"]) == ("fault", "two\nlines, é")


def _lines(folder, name):
    return (folder.path / name).read_text(encoding="utf-8").splitlines()


def test_json_is_replaced_as_a_whole(folder):
    path = folder.path / "summary.json"
    folder.write_json(path, {"a": 1})
    folder.write_json(path, {"b": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "é"}
    with pytest.raises(TypeError):
        folder.write_json(path, {"c": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "é"}
    assert [p.name for p in folder.path.iterdir()] == ["summary.json"]


def test_without_a_checkpoint_there_is_none(folder):
    assert folder.latest_checkpoint() is None


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(folder):
    save(folder, 9, keep_last=9)
    save(folder, 100, keep_last=9)
    save(folder, 20, keep_last=9)
    assert folder.latest_checkpoint() == folder.checkpoints / "step-000100"


def test_a_checkpoint_that_is_still_being_written_is_never_loaded(folder):
    save(folder, 1)
    partial = folder.begin_checkpoint(2)
    (partial / "state.json").write_text("half")
    assert folder.latest_checkpoint() == folder.checkpoints / "step-000001"


def test_a_checkpoint_without_its_marker_is_never_loaded(folder):
    save(folder, 1)
    (save(folder, 2) / COMPLETE).unlink()
    assert folder.latest_checkpoint() == folder.checkpoints / "step-000001"


def test_what_a_dead_driver_left_half_written_is_started_anew(folder):
    (folder.begin_checkpoint(2) / "stale.pt").touch()
    assert list(folder.begin_checkpoint(2).iterdir()) == []


def test_the_oldest_checkpoints_beyond_the_limit_are_removed(folder):
    for step in (1, 2, 3):
        save(folder, step, keep_last=2)
    assert names(folder) == ["step-000002", "step-000003"]


def test_a_checkpoint_of_the_same_step_replaces_the_older_one(folder):
    save(folder, 5, keep_last=1, content="in the middle of the stage")
    path = save(folder, 5, keep_last=1, content="stage closed")
    assert names(folder) == ["step-000005"]
    assert (path / "state.json").read_text() == "stage closed"
    assert folder.latest_checkpoint() == path


def test_a_second_process_is_kept_out_until_the_first_lets_go(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    refused = pytest.raises(UserError, match="another process is training in it")
    with folder.locked(), refused, folder.locked():
        pass
    with folder.locked():
        pass
