"""`qwenlong export`: any checkpoint as a Hugging Face folder with a card, here and on a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import metadata_load
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from cluster.cli import app
from cluster.run.heldout_statistics import Evaluation
from cluster.run.progress import Best, Progress, StageProgress
from tests.harness.command import ROOT
from tests.harness.heldout import a_cell
from tests.harness.hub import TOKEN, UploadHub
from tests.harness.saved_run import write_run

BASE = ROOT / "recipes" / "assets" / "local_base"
NAME = "owner/model"


def measured(step, short, odd):
    def cell(accuracy):
        return a_cell(accuracy, low=0.0, high=0.75, num_questions=8)

    cells = {"": cell((short + odd) / 2), "/short": cell(short), "/a%7Cb": cell(odd)}
    return Evaluation(step=step, num_samples=1, cells={f"heldout/accuracy{key}": x for key, x in cells.items()})


PROGRESS = Progress(
    step=26,
    base_heldout=measured(0, 0.0, 0.125),
    finished_stages=[
        StageProgress(name="sft", kind="sft", steps=24, heldout=measured(24, 0.5, 0.25), end_reason="steps")
    ],
    stage=StageProgress(name="short", kind="rl", steps=2),
    best=Best(metric="heldout/accuracy", step=24, value=0.375),
)


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    return {name: weight.detach() + torch.randn_like(weight) for name, weight in model.named_parameters()}


@pytest.fixture
def run(tmp_path, weights):
    return write_run(tmp_path / "run", BASE, weights, PROGRESS, "seed=5")


@pytest.fixture
def hub():
    server = UploadHub()
    yield server
    server.close()


def export(*arguments):
    """Exit status and lines on standard error."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines()


def refused(*arguments):
    status, lines = export(*arguments)
    assert (status, len(lines)) == (2, 1), lines
    return lines[0]


def push(hub, *arguments, token=TOKEN, endpoint=None):
    """The same in a process of its own: the library reads its environment once."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint or hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": "/nowhere", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "cluster.cli", "export", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr.splitlines()


def test_the_folder_loads_in_transformers_with_the_weights_of_the_checkpoint(run, weights, tmp_path):
    assert export(run.checkpoints.path / "step-000026", tmp_path / "out") == (0, [f"model:   {tmp_path / 'out'}"])
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters():
        assert torch.equal(weight, weights[name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_run_folder_stands_for_its_newest_whole_checkpoint(run, tmp_path):
    (run.checkpoints.path / "step-000030").mkdir()
    status, lines = export(run.path, tmp_path / "out")
    assert status == 0
    assert lines[:2] == [
        "checkpoint step-000030 is damaged: COMPLETE: is missing",
        "using step-000026, the newest checkpoint that is whole",
    ]
    assert metadata_load(tmp_path / "out" / "README.md")["qwenlong"]["step"] == 26


def test_the_base_model_is_not_needed_any_more(tmp_path, weights):
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    run = write_run(tmp_path / "run", base, weights, PROGRESS)
    shutil.rmtree(base)
    assert export(run.path, tmp_path / "out")[0] == 0
    assert safetensors.torch.load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()


def test_the_card_says_where_the_model_comes_from(run, tmp_path):
    export(run.path, tmp_path / "out")
    head = metadata_load(tmp_path / "out" / "README.md")
    digest = (run.checkpoints.path / "step-000026" / "COMPLETE").read_text().strip()
    assert head["qwenlong"] == {"run": "run", "stage": "short", "step": 26, "checkpoint": digest}
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model" not in head, "a folder has no name on the hub"
    text = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "# local: short, step 26",
        "| after | all | short | a\\|b |",
        "| base | 0.062 \\[0.00, 0.75\\] | 0.000 \\[0.00, 0.75\\] | 0.125 \\[0.00, 0.75\\] |",
        "| sft | 0.375 \\[0.00, 0.75\\] | 0.500 \\[0.00, 0.75\\] | 0.250 \\[0.00, 0.75\\] |",
        "Highest `heldout/accuracy` so far: 0.375, after step 24.",
        "| sft | 24 | – | steps |",
        "| short | 2 | 300 | running |",
        "reinforcement learning over documents of growing length. Seed 5.",
        "vllm serve FOLDER",
    ):
        assert line in text, line
    recipe = text.partition("```yaml\n")[2].partition("\n```")[0]
    assert yaml.safe_load(recipe) == yaml.safe_load(run.recipe.read_text())
    inputs = json.loads((run.checkpoints.path / "step-000026" / "state.json").read_text())["inputs"]
    assert inputs.keys() == {"model.path", "data.train", "data.sft"}
    for key, value in inputs.items():
        assert f"| {key} | " in text
        assert f" | {value} |" in text


def test_the_licence_is_that_of_the_base_model(tmp_path, weights):
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Base\n")
    run = write_run(tmp_path / "run", base, weights, PROGRESS)
    export(run.path, tmp_path / "out")
    assert metadata_load(tmp_path / "out" / "README.md")["license"] == "apache-2.0"
    assert "which says `apache-2.0`" in (tmp_path / "out" / "README.md").read_text()


def test_text_of_data_is_no_markup_of_the_card(tmp_path, weights):
    name = "<b>\x1b[31m```\n---\n# owned"
    progress = Progress(step=1, stage=StageProgress(name=name, kind="rl", steps=1))
    run = write_run(tmp_path / "run", BASE, weights, progress)
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["data"]["train"] = "</td><script>x</script>|`|](http://evil)\n```\n# owned"
    run.recipe.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    assert export(run.path, tmp_path / "out") == (0, [f"model:   {tmp_path / 'out'}"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\x1b" not in text
    assert "\n# owned" not in text
    body, _, rest = text.partition("---\n\n# ")[2].partition("## Recipe\n\n")
    assert "<b>" not in body.replace("\\<b\\>", "")
    assert "<script>" not in body.replace("\\<script\\>", "")
    fence = rest.splitlines()[0].removesuffix("yaml")
    block, _, behind = rest.partition(f"\n{fence}\n")
    assert "http://evil" in block
    assert "http://evil" not in behind
    assert metadata_load(tmp_path / "out" / "README.md")["qwenlong"]["stage"] == name.replace("\x1b", "\x1b")


@pytest.mark.parametrize("place", ["step-000026", "../checkpoints/step-000026", "step-000026/"])
def test_a_damaged_checkpoint_is_named_with_its_file(run, tmp_path, place):
    shard = run.checkpoints.path / "step-000026" / "learner" / "rank_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    line = refused(f"{run.checkpoints.path}/{place}", tmp_path / "out")
    assert "is damaged: learner/rank_00001.safetensors: has " in line
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_refused(run, tmp_path):
    assert refused(tmp_path / "no", tmp_path / "out").startswith(f"error: {tmp_path / 'no'}: does not exist; give RUN")
    assert "is no checkpoint of a run (no " in refused(run.checkpoints.path, tmp_path / "out")
    assert "is no checkpoint of a run (no " in refused(run.recipe, tmp_path / "out")
    assert "does not exist; give RUN" in refused(run.checkpoints.path / "step-000099", tmp_path / "out")


def test_a_run_without_a_checkpoint_or_the_files_of_its_model_is_refused(run, tmp_path):
    run.model_files.rename(tmp_path / "elsewhere")
    assert "model_files: is missing, which has configuration and tokenizer of" in refused(run.path, tmp_path / "out")
    (run.checkpoints.path / "step-000026").rename(tmp_path / "checkpoint")
    assert refused(run.path, tmp_path / "out").endswith("run: has no checkpoint yet; wait for the first one")


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert refused(run.path, tmp_path / "out").endswith("out: is there already and not empty; give a new folder")
    assert refused(run.path, tmp_path / "out" / "thesis.tex").endswith("not empty; give a new folder")
    (tmp_path / "empty").mkdir()
    assert export(run.path, tmp_path / "empty")[0] == 0


def test_code_that_comes_with_the_model_needs_the_users_word(run, tmp_path):
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["model"]["trust_remote_code"] = True
    run.recipe.write_text(yaml.safe_dump(recipe))
    assert "model.trust_remote_code=True: code that comes with" in refused(run.path, tmp_path / "out")
    assert export(run.path, tmp_path / "out", "--trust-remote-code")[0] == 0


def test_a_name_that_no_hub_takes_is_refused_before_anything_is_read(run, tmp_path):
    assert "--push 'model': is no name on the hub; give OWNER/NAME" in refused(
        run.path, tmp_path / "o", "--push", "model"
    )
    assert refused(run.path, tmp_path / "out", "--private") == "error: --private: only with --push"


def test_a_pushed_model_is_what_is_in_the_folder(run, hub, tmp_path):
    status, lines = push(hub, run.path, tmp_path / "out", "--push", NAME, "--private")
    assert (status, lines[-1]) == (0, f"on the hub: {hub.url}/{NAME}")
    assert hub.repositories[NAME] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.private[NAME]


def test_a_repository_with_another_model_gets_this_one_and_keeps_what_is_none(run, hub, tmp_path):
    hub.repositories[NAME] = {
        "model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"old", "README.md": b"old",
        "figure.png": b"mine",
    }  # fmt: skip
    status, lines = push(hub, run.path, tmp_path / "out", "--push", NAME)
    assert status == 0, lines
    ours = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.repositories[NAME] == {**ours, "figure.png": b"mine"}


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"token": ""}, 2, f"--push {NAME}: URL knows no such user: set HF_TOKEN to a token that may write; "),
        ({"token": "hf_wrong"}, 2, f"--push {NAME}: URL knows no such user: set HF_TOKEN to a token that may write; "),
        ({"name": "others/model"}, 2, "--push others/model: URL does not let this token write there: use another "),
        ({"endpoint": "http://127.0.0.1:1"}, 1, f"--push {NAME}: http://127.0.0.1:1 cannot be reached or failed ("),
        ({"broken": "/commit/"}, 2, f"--push {NAME}: URL refuses ("),
    ],
)  # fmt: skip
def test_what_keeps_a_model_from_the_hub_is_one_line(run, hub, tmp_path, options, status, message):
    hub.broken = options.pop("broken", None)
    name = options.pop("name", NAME)
    found, lines = push(hub, run.path, tmp_path / "out", "--push", name, **options)
    assert found == status, lines
    assert lines[-1].startswith("error: " + message.replace("URL", hub.url)), lines
    if hub.broken:
        assert lines[-1].endswith(
            f"the model is in {tmp_path / 'out'}; upload it with: hf upload {NAME} {tmp_path / 'out'}"
        )
    else:
        assert lines[1:] == [], "nothing was read or written before"
        assert not (tmp_path / "out").exists()
