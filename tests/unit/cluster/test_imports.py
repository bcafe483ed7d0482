"""What is loaded together: records, recipes, help, scores and reports come without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = frozenset({"ray", "torch", "vllm", "deepspeed", "transformers", "datasets", "wandb"})
MODULES = (
    "cluster.recipe.config",
    "cluster.recipe.load",
    "cluster.run.folder",
    "cluster.run.metrics",
    "cluster.roles",
    "actors.trajectory",
    "actors.rollout",
    "actors.prompt",
    "actors.weights.update",
    "actors.engine",
)
HELP = ("--help", "check --help", "train --help", "data --help")
COMMAND = """
from cluster.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code
"""
UNREADABLE_RECIPE = """
from cluster.recipe.load import load_recipe
from curriculum.errors import UserError
try:
    load_recipe("gone.yaml")
except UserError:
    pass
"""
SCORES = "import reward.hybrid, reward.junk_check"
REPORTS = "import evaluation.command, evaluation.evaluate, evaluation.distill"
ROW = {"id": "a", "data_source": "musique", "response": "</think>the answer is seven", "ground_truth": "seven"}
LISTEN = """
import json, os, sys
for line in sys.stdin:
    receive, send = os.pipe()
    if not os.fork():
        os.dup2(2, 1)  # what the code prints is none of the answer
        exec(json.loads(line), {})
        os.write(send, json.dumps(sorted({name.partition(".")[0] for name in sys.modules})).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        print(answer.read(), flush=True)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded_after():
    """Tells the packages that a fresh interpreter has loaded after some code: each in a fork of one that has none."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(code: str) -> set[str]:
        process.stdin.write(json.dumps(code) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip()
        assert answer, f"it failed, see its traceback:\n{code}"
        return set(json.loads(answer))

    yield ask
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_records_or_settings_loads_nothing_heavy(loaded_after, module):
    assert not loaded_after(f"import {module}") & HEAVY


@pytest.mark.parametrize("arguments", HELP)
def test_help_loads_nothing_heavy(loaded_after, arguments):
    assert not loaded_after(COMMAND.format(arguments=arguments.split())) & HEAVY


def test_a_recipe_that_cannot_be_read_loads_nothing_heavy(loaded_after):
    assert not loaded_after(UNREADABLE_RECIPE) & HEAVY


def test_scores_need_no_heavy_library_and_no_numpy(loaded_after):
    assert not loaded_after(SCORES) & {*HEAVY, "numpy", "openai"}


def test_the_command_that_scores_needs_no_heavy_library_and_no_numpy(loaded_after, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    code = COMMAND.format(arguments=["score", str(source), "--out", str(tmp_path / "out.jsonl")])
    assert not loaded_after(code) & {*HEAVY, "numpy", "openai", "pyarrow"}
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["score"] == 1.0


def test_reports_and_their_metrics_load_nothing_heavy(loaded_after):
    assert not loaded_after(REPORTS) & {*HEAVY, "openai"}


def test_a_heavy_library_would_be_seen(loaded_after):
    assert {"numpy", "json"} <= loaded_after("import numpy")
