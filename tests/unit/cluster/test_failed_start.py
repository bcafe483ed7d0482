"""A start that failed blocks nothing: the mended command takes its folder; what holds results is left alone."""

from __future__ import annotations

import stat

import pytest

from cluster.run.folder import RunFolder
from curriculum.errors import UserError


def failed_start(path):
    """What a run leaves that ends while its actors start."""
    folder = RunFolder.create(path)
    with folder.locked():
        folder.recipe.write_text("name: a\n")
        (path / "rejects-data.train.jsonl").write_text("{}\n")
        folder.append_event("fault", actor="rollout-0")
        (path / "logs" / "ray-session").mkdir(parents=True)
        (path / "wandb").mkdir()
        (path / "reference").mkdir()
        (path / "reference" / "model.safetensors").touch()
        (path / "checkpoints" / ".step-000001.partial").mkdir(parents=True)
        (path / "metrics.jsonl").write_text('{"step": 0, "lo')
    return path


def take(path):
    folder = RunFolder.create(path)
    with folder.locked():
        folder.clear()
    return folder


def test_the_folder_of_a_start_that_failed_is_begun_anew_with_its_logs_kept(tmp_path):
    path = failed_start(tmp_path / "run")
    take(path)
    assert {entry.name for entry in path.iterdir()} == {".lock", "recipe.yaml", "events.jsonl", "logs", "wandb"}
    assert (path / "logs" / "ray-session").is_dir()


@pytest.mark.parametrize("name", [".lock", ".recipe.yaml.partial"])
def test_a_start_that_did_not_come_to_its_recipe_blocks_nothing(tmp_path, name):
    path = tmp_path / "run"
    path.mkdir()
    (path / name).touch()
    take(path)


@pytest.mark.parametrize(
    "name",
    ["thesis.txt", "model/model.safetensors", "summary.json", "trajectories/step-000001.parquet",
     "checkpoints/step-000005/COMPLETE", "logs.txt"],
)  # fmt: skip
def test_a_folder_with_a_result_or_something_else_in_it_is_left_alone(tmp_path, name):
    path = failed_start(tmp_path / "run")
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("work")
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=r"exists and is not empty; continue it with --resume"):
        RunFolder.create(path)
    assert sorted(path.rglob("*")) == before


def test_a_run_with_a_finished_step_is_left_alone(tmp_path):
    path = failed_start(tmp_path / "run")
    (path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(UserError, match="is not empty"):
        RunFolder.create(path)


def test_files_without_a_recipe_are_not_ours(tmp_path):
    (tmp_path / "events.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is not empty"):
        RunFolder.create(tmp_path)


def test_a_run_that_is_still_starting_is_not_taken(tmp_path):
    path = failed_start(tmp_path / "run")
    with RunFolder.create(path).locked(), pytest.raises(UserError, match="another process is training in it"):
        take(path)


def test_what_came_to_results_meanwhile_is_not_cleared(tmp_path):
    folder = RunFolder.create(failed_start(tmp_path / "run"))
    folder.append_metrics({"step": 0})
    folder.append_metrics({"step": 1})
    with pytest.raises(UserError, match="is no longer empty"):
        folder.clear()
    assert (folder.path / "reference" / "model.safetensors").is_file()


def test_nobody_else_reads_a_new_run_folder(tmp_path):
    path = RunFolder.create(tmp_path / "runs" / "a").path
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
