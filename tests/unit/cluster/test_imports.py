"""Records, recipes and help load in a moment: no heavy library comes with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "vllm", "deepspeed", "transformers", "datasets", "wandb")
REPORT = f"import sys; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"


def heavy_after(code: str) -> str:
    script = f"{code}\n{REPORT}"
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root).stdout


@pytest.mark.parametrize(
    "module",
    [
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
    ],
)
def test_a_module_of_records_or_settings_loads_nothing_heavy(module):
    assert heavy_after(f"import {module}").strip() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["train", "--help"], ["data", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"from cluster.cli import app\ntry:\n    app({arguments!r})\nexcept SystemExit as e:\n    assert not e.code"
    assert heavy_after(code).splitlines()[-1] == ""


def test_a_recipe_that_cannot_be_read_loads_nothing_heavy():
    code = (
        "from cluster.recipe.load import load_recipe\nfrom curriculum.errors import UserError\n"
        "try:\n    load_recipe('gone.yaml')\nexcept UserError:\n    pass"
    )
    assert heavy_after(code).strip() == ""
