"""What `qwenlong eval` takes from a run folder."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.run.evaluated import models_of
from curriculum.errors import UserError
from curriculum.synthetic import generate_items

ROOT = Path(__file__).parents[3]
BASE = ROOT / "recipes" / "assets" / "local_base"


@pytest.fixture
def make_run(tmp_path):
    """Makes the folder of a run with models of some stages."""

    def make(*stages, overrides=(), final=False):
        folder = tmp_path / "demo"
        config = load_recipe(ROOT / "recipes" / "local.yaml", [f"model.path={BASE}", *overrides])
        for name in [f"models/{stage}" for stage in stages] + (["model"] if final else []):
            (folder / name).mkdir(parents=True)
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(dump_recipe(config))
        (folder / "events.jsonl").write_text("")
        return folder, config

    return make


@pytest.fixture
def refusal():
    def run(*arguments):
        """The one error line of a command that cannot be carried out."""
        result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert (result.exit_code, len(errors)) == (2, 1), result.output
        return errors[0]

    return run


def labels(run, config):
    said = []
    found = models_of(run, config, said.append)
    return [(model.label, model.folder, Path(model.path).name) for model in found], said


def test_the_models_of_a_run_are_its_base_and_its_stages_in_order_and_the_best(make_run):
    run, config = make_run("phase-2", "best", "phase-1", "sft", final=True)
    assert labels(run, config) == (
        [
            ("base", "0-base", "local_base"),
            ("after sft", "1-sft", "sft"),
            ("after phase-1", "2-phase-1", "phase-1"),
            ("after phase-2", "3-phase-2", "phase-2"),
            ("best", "4-best", "best"),
        ],
        [],
    )


def test_the_final_model_stands_for_the_last_stage_and_missing_stages_are_told(make_run):
    run, config = make_run("sft", final=True)
    found, said = labels(run, config)
    assert [label for label, _, _ in found] == ["base", "after sft", "after phase-2"]
    assert found[-1] == ("after phase-2", "3-phase-2", "model")
    assert said == [f"after phase-1: no model at {run / 'models' / 'phase-1'}; it is left out"]


def test_a_base_that_is_gone_is_left_out_and_told(make_run):
    run, config = make_run("sft", overrides=["model.path=./nowhere"])
    found, said = labels(run, config)
    assert [label for label, _, _ in found] == ["after sft"]
    assert said[-1].startswith("base: left out (model.path='./nowhere': no such folder")


def test_a_run_without_models_is_refused_with_the_way_to_some(make_run):
    run, config = make_run()
    with pytest.raises(UserError, match="holds no model"):
        models_of(run, config, lambda _: None)


def test_without_a_benchmark_a_run_needs_its_held_out_questions_and_a_model_a_name(make_run, refusal):
    run, _ = make_run("sft")
    assert f"{run}: it has no held-out questions (heldout/questions.jsonl); name a BENCHMARK" in refusal(run)
    assert "BENCHMARK is missing" in refusal(BASE)


def test_questions_of_a_model_of_a_run_leak_from_the_data_of_the_run(make_run, refusal, tmp_path):
    rows = generate_items(num_items=4, min_words=96, max_words=160, seed=3, prefix="row")
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, _ = make_run(overrides=[f"data.train={path}", "data.sft.items_per_length=2"])
    shutil.copytree(BASE, run / "models" / "sft")
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row | {"id": f"b{row['id']}"}) + "\n" for row in rows))
    for model in (run, run / "models" / "sft"):
        line = refusal(model, asked, "--judge", "none", "--max-input", 1000, "--max-output", 8, "--out", tmp_path / "o")
        assert "--exclude data.train of demo: all 4 questions leak from it" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "no_documents"], "--control.0='no_documents'"),
        (["--exclude", "nothing.jsonl"], "--exclude=nothing.jsonl: no such file"),
        (["--max-input", "40000"], "lower --max-input or --max-output"),
    ],
)
def test_options_that_cannot_be_used_are_told(refusal, tmp_path, arguments, message):
    asked = tmp_path / "asked.jsonl"
    (row,) = generate_items(num_items=1, min_words=96, max_words=160, seed=3, prefix="row")
    asked.write_text(json.dumps(row) + "\n")
    assert message in refusal(BASE, asked, *arguments, "--max-output", 8, "--out", tmp_path / "o")
