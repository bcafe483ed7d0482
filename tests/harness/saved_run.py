"""The parts of a checkpoint as the ranks of a learner write them, and a run folder around one; without a learner."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from cluster.recipe.load import dump_recipe, load_recipe
from cluster.recipe.preparation import prepare
from cluster.run.folder import RunFolder
from cluster.run.progress import Progress
from cluster.run.rehearsal import rehearse
from curriculum.seal import part_of
from tests.harness.command import ROOT

RECIPE = (
    "data.train={type: generated, items_per_length: 2, lengths: [[96, 192]]}",
    "data.sft={type: generated, items_per_length: 2, lengths: [[48, 96]]}",
    "data.evaluation=null",
    "curriculum.phases=[{name: short, max_prompt_tokens: 300, end: {type: steps, steps: 1}}]",
    "rollout.max_response_tokens=32",
    "learner.max_tokens_per_microbatch=2000",
    "reward.judge={type: none}",
)


def write_parts(folder: Path, weights: dict[str, torch.Tensor], *, num_ranks: int, dtype: str = "fp32") -> None:
    """Every parameter in equal partitions, one per rank, the last one padded, in one flat tensor per rank."""
    folder.mkdir(parents=True, exist_ok=True)
    index, flats, offset = {}, [[] for _ in range(num_ranks)], 0
    for name, weight in weights.items():
        flat = weight.float().flatten()
        length = -(-len(flat) // num_ranks)
        padded = torch.cat([flat, torch.full((length * num_ranks - len(flat),), 7.0)])
        for rank in range(num_ranks):
            flats[rank].append(padded[rank * length : (rank + 1) * length])
        index[f"causal_lm.{name}"] = [0, offset, length, len(flat)]
        offset += length
    for rank, parts in enumerate(flats):
        safetensors.torch.save_file({"weights.0": torch.cat(parts)}, folder / f"rank_{rank:05d}.safetensors")
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "manifest.json").write_text(json.dumps({"stage": "rl", "dtype": dtype, "world_size": num_ranks}))


def write_run(path: Path, base: Path, weights: dict[str, torch.Tensor], progress: Progress, *more: str) -> RunFolder:
    """A run folder with one checkpoint of two ranks."""
    folder = RunFolder.create(path)
    config = load_recipe(ROOT / "recipes" / "local.yaml", [*RECIPE, f"model.path={base}", *more])
    folder.recipe.write_text(dump_recipe(config))
    prepared = prepare(config)
    rehearse(config, prepared, folder.model_files, run=path.name)
    partial = folder.checkpoints.begin(progress.step)
    write_parts(partial / "learner", weights, num_ranks=2)
    state = {"progress": progress.state_dict(), "curriculum": None, "inputs": dict(prepared.inputs)}
    place = part_of(partial, "learner")
    written = {name: place.digest(name) for name in place.names()}
    folder.checkpoints.finish(partial, progress.step, state, written, keep_last=9)
    return folder
