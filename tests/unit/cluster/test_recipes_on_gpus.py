"""The recipes for GPUs: `check` passes with a model of the real shape, and each one fits the machine that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from cluster.cli import app
from cluster.processes.capacity import demands
from cluster.recipe.load import load_recipe
from cluster.recipe.shared_gpus import RESERVED, engine_share, resting_share, working_share

RECIPES = Path(__file__).parents[3] / "recipes"
BASE = RECIPES / "assets" / "local_base"
JUDGE = RECIPES / "assets" / "local_judge"
SHAPES = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4},
    "14B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8},
    "32B": {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
            "num_key_value_heads": 8},
}  # fmt: skip
"""Of deepseek-ai/DeepSeek-R1-Distill-Qwen-*, from the configurations of the hub."""
GPUS = {
    "one_gpu_1.5b": ("1.5B", 1),
    "one_node_7b": ("7B", 8),
    "qwenlong_l1_14b_dapo": ("14B", 32),
    "qwenlong_l1_14b_grpo": ("14B", 32),
    "qwenlong_l1_32b_dapo": ("32B", 32),
    "qwenlong_l1_32b_grpo": ("32B", 32),
}
MAX_FILE_BYTES = 5_000_000_000
QUESTIONS = "{type: generated, items_per_length: 3, lengths: [[96, 192], [24000, 25000]]}"


def required_gpus(config):
    return sum(demand.num_gpus * demand.count for demand in demands(config))


def write_holes(folder, config):
    """Safetensors files with all weights of a model, which are zeros and take no room on the disk."""
    with torch.device("meta"):
        weights = Qwen2ForCausalLM(Qwen2Config(**config)).to(torch.bfloat16).state_dict()
    files, num_bytes = [{}], 0
    for name, weight in weights.items():
        if num_bytes + weight.nbytes > MAX_FILE_BYTES:
            files.append({})
            num_bytes = 0
        files[-1][name] = weight
        num_bytes += weight.nbytes
    index = {}
    for number, own in enumerate(files):
        file, header, end = f"model-{number}.safetensors", {}, 0
        for name, weight in own.items():
            header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + weight.nbytes]}
            end += weight.nbytes
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as output:
            output.write(len(text).to_bytes(8, "little") + text)
            output.truncate(8 + len(text) + end)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.fixture
def model(tmp_path):
    """A folder with the shape of a model, but for its vocabulary; its weights are holes in files."""

    def build(size):
        folder = tmp_path / size
        shutil.copytree(BASE, folder)
        kept = json.loads((BASE / "config.json").read_text())
        config = {
            **{key: kept[key] for key in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id")},
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072, "rope_theta": 10000, "dtype": "bfloat16", **SHAPES[size],
            "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").unlink()
        write_holes(folder, config)
        return folder

    return build


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_for_gpus_passes_the_check_with_a_model_of_its_shape(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size, _ = GPUS[name]
    data = [f"data.train={QUESTIONS}", "data.evaluation=null"]
    if "qwenlong" in name:
        data.append("data.sft={type: generated, items_per_length: 9, lengths: [[48, 96]]}")
    overrides = [f"model.path={model(size)}", f"reward.judge.model={JUDGE}", "reward.judge.max_model_len=1024", *data]
    result = CliRunner().invoke(app, ["check", str(RECIPES / f"{name}.yaml"), *overrides])
    assert result.exit_code == 0, result.output


def test_every_recipe_for_gpus_is_checked():
    on_gpus = {path.stem for path in RECIPES.glob("*.yaml") if load_recipe(path).device == "cuda"}
    assert on_gpus == GPUS.keys()


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_for_gpus_fits_its_machine(name):
    assert required_gpus(load_recipe(RECIPES / f"{name}.yaml")) <= GPUS[name][1]


def test_one_card_and_one_node_are_used_up():
    assert required_gpus(load_recipe(RECIPES / "one_gpu_1.5b.yaml")) == 1
    assert required_gpus(load_recipe(RECIPES / "one_node_7b.yaml")) == 8


def test_the_comments_of_the_card_are_the_shares_of_its_79_gib():
    config = load_recipe(RECIPES / "one_gpu_1.5b.yaml")
    shares = (0.1, engine_share(config, 0), resting_share(config), working_share(config, 0), RESERVED)
    gib = [f"{79.1 * share:.1f}" for share in shares]
    assert gib == ["7.9", "59.3", "7.9", "67.2", "4.0"]
    text = (RECIPES / "one_gpu_1.5b.yaml").read_text()
    assert all(value in text for value in gib)
