"""Run folders: a resume, and reports, after damage to what a run wrote."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from cluster.recipe.load import dump_recipe, load_recipe
from cluster.run.checkpoints import Checkpoints
from cluster.run.progress import Progress
from curriculum.seal import part_of, seal
from learner.zero3.model_files import copy_model_files
from tests.fuzz.targets import recipes
from tests.fuzz.targets.recipes import SMALL
from tests.fuzz.trial import Trial
from tests.fuzz.values import damaged, json_value
from tests.harness.command import ROOT
from tests.harness.saved_run import write_parts

BASE = ROOT / "recipes" / "assets" / "local_base"

NAMES = (
    "--run-dir",
    *recipes.NAMES,
    "/run",
    "--resume",
    "recipe",
    "run folder",
    "checkpoint",
    "state.json",
    "metrics.jsonl",
    "events.jsonl",
    "COMPLETE",
    "manifest",
    "step-",
    "parts",
    "learner",
    "model_files",
    "/out",
    "/proc/x",
    "/dev/null",
)


def make(rng: random.Random, folder: Path) -> Trial:
    """Write a run with a checkpoint, damage one of its files, and resume it; or begin a run where none can be."""
    run = folder / "run"
    if rng.random() < 0.15:
        return _fresh(rng, folder)
    _write_run(rng, run)
    if rng.random() < 0.3:
        return _export(rng, run)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    victim = rng.choice(files)
    match rng.randrange(5):
        case 0:
            victim.unlink()
        case 1:
            victim.unlink()
            victim.mkdir()
        case 2:
            victim.write_text(json.dumps(json_value(rng)))
        case _:
            victim.write_bytes(damaged(rng, victim.read_bytes()))
    given = rng.choice((run,) * 12 + (folder, folder / "gone", run / "recipe.yaml", run / "checkpoints", "a/" * 2500))
    more = rng.choice(((),) * 4 + ((str(run / "recipe.yaml"),), ("seed=3",)))
    return Trial(arguments=("train", *more, "--resume", str(given)), names=NAMES)


def _export(rng: random.Random, run: Path) -> Trial:
    """Export a checkpoint of which a part is wrong, but sealed, as another version of the program may write it."""
    checkpoint = run / "checkpoints" / "step-000002"
    shutil.rmtree(checkpoint / "learner")
    write_parts(checkpoint / "learner", load_file(BASE / "model.safetensors"), num_ranks=2)
    (run / "model_files").mkdir()
    copy_model_files(str(BASE), run / "model_files", dtype="float32", with_code=False)
    victim = rng.choice([*(checkpoint / "learner").iterdir(), *(run / "model_files").iterdir()])
    if rng.random() < 0.5 and victim.suffix == ".json":
        victim.write_text(json.dumps(json_value(rng)))
    else:
        victim.write_bytes(damaged(rng, victim.read_bytes()))
    if rng.random() < 0.9:
        seal(checkpoint)
    given = rng.choice((run,) * 3 + (checkpoint,) * 6 + (run / "checkpoints", run.parent / "gone", run / ("y" * 300)))
    out = rng.choice((run.parent / "out",) * 8 + (run, run / "recipe.yaml", Path("/proc/x"), Path("/dev/null")))
    return Trial(arguments=("export", str(given), str(out)), names=NAMES)


def _fresh(rng: random.Random, folder: Path) -> Trial:
    recipe = folder / "given.yaml"
    recipe.write_text(json.dumps(SMALL | {"tracking": {"wandb": False}}))
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    places = (folder / "new", folder / "full", recipe, recipe / "x", folder / ("y" * 300), "/proc/x", "",
              "a/" * 2500, "a\nb", "/dev/null")  # fmt: skip
    more = rng.choice((("--resume", str(folder / "full")), ("seed=-1",), ("--quiet",), (), (), ()))
    return Trial(arguments=("train", str(recipe), *more, "--run-dir", str(rng.choice(places))), names=NAMES)


def _write_run(rng: random.Random, run: Path) -> None:
    recipe = run.parent / "given.yaml"
    recipe.write_text(json.dumps(SMALL | {"tracking": {"wandb": False}}))
    run.mkdir()
    run_folder = Checkpoints(run / "checkpoints")
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(recipe)))
    (run / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n')
    (run / "events.jsonl").write_text('{"time": 1.0, "event": "started"}\n')
    (run / ".lock").touch()
    for step in (1, 2):
        partial = run_folder.begin(step)
        written = {"shard": part_of(partial, "learner").write("shard", [bytes(range(256))])}
        state = {"progress": Progress(step=step).state_dict(), "curriculum": None, "inputs": {}}
        if rng.random() < 0.4:
            _spoil(rng, state)
        run_folder.finish(partial, step, state, written, keep_last=2)


def _spoil(rng: random.Random, state: Any) -> None:
    """Replace one value of a state that is sealed afterwards, as another version of the program may write it."""
    node = state
    while True:
        key = rng.choice(list(node))
        if not isinstance(node[key], dict) or not node[key] or rng.random() < 0.3:
            node[key] = json_value(rng)
            return
        node = node[key]
