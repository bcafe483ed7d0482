"""The run folder: never overwritten, written whole, mended before it is continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.run.checkpoints import Checkpoint
from cluster.run.folder import RunFolder
from cluster.run.progress import Progress, StageProgress
from curriculum.errors import UserError
from curriculum.seal import seal


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run")


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


def test_what_dead_writers_left_is_gone_after_mending_and_the_rest_is_not(folder):
    folder.append_metrics({"step": 0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    folder.trajectories.mkdir()
    dead = (".summary.json.partial", "trajectories/.step-000001.parquet.partial")
    for name in (*dead, "trajectories/step-000000.parquet"):
        (folder.path / name).touch()
    (folder.checkpoints.begin(2) / "stale.pt").touch()
    said = []
    folder.mend(said.append)
    assert said == ["metrics.jsonl: its last line was unfinished; removed 15 bytes"]
    assert _lines(folder, "metrics.jsonl") == ['{"step": 0}']
    assert sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*")) == [
        "checkpoints", "metrics.jsonl", "trajectories", "trajectories/step-000000.parquet"
    ]  # fmt: skip


def test_a_model_on_another_disk_is_mended_there_and_nothing_else_of_that_disk(folder, tmp_path):
    disk = tmp_path / "disk"
    for name in (".model.partial", ".other.partial", ".model.replaced"):
        (disk / name).mkdir(parents=True)
        (disk / name / "weights").write_text(name)
    folder.model.symlink_to(disk / "model")
    folder.mend(print)
    assert sorted(path.name for path in disk.iterdir()) == [".other.partial", "model"]
    assert (folder.model / "weights").read_text() == ".model.partial", "killed between its two names"


def checkpoint_of(kind):
    progress = Progress(step=5, stage=StageProgress(name=kind, kind=kind))
    return Checkpoint(path=Path("step-000005"), progress=progress, curriculum=None, inputs={}, digest="")


def test_a_reference_policy_that_is_whole_passes(folder):
    folder.reference.mkdir()
    (folder.reference / "model.safetensors").write_text("weights")
    seal(folder.reference)
    folder.check_reference(checkpoint_of("rl"), pytest.fail)


def test_a_damaged_reference_policy_is_refused_where_the_checkpoint_needs_it(folder):
    folder.reference.mkdir()
    with pytest.raises(UserError, match=r"reference: damaged \(COMPLETE: is missing\), and training measures the KL"):
        folder.check_reference(checkpoint_of("rl"), pytest.fail)


@pytest.mark.parametrize("checkpoint", [None, checkpoint_of("sft")])
def test_before_the_reinforcement_learning_a_damaged_reference_policy_is_written_again(folder, checkpoint):
    folder.reference.mkdir()
    said = []
    folder.check_reference(checkpoint, said.append)
    assert said == ["reference is damaged: COMPLETE: is missing; it will be written again"]
    assert not folder.reference.exists()


def test_a_second_process_is_kept_out_until_the_first_lets_go(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    refused = pytest.raises(UserError, match="another process is training in it")
    with folder.locked(), refused, folder.locked():
        pass
    with folder.locked():
        pass
