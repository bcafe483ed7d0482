"""Recipes: `qwenlong check` with hostile values, structures, overrides and bytes."""

from __future__ import annotations

import json
import random
import shutil
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cluster.recipe.config import RunConfig
from tests.fuzz.trial import Trial
from tests.fuzz.values import YAML_VALUES, bomb, damaged, json_value

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    "name": "small",
    "device": "cpu",
    "model": {"path": str(ROOT / "recipes/assets/local_base")},
    "data": {
        "train": {"type": "generated", "items_per_length": 2, "lengths": [[96, 192]]},
        "sft": {"type": "generated", "items_per_length": 2, "lengths": [[48, 96]]},
    },
    "sft": {"epochs": 1, "batch_size": 2, "learning_rate": 0.004},
    "curriculum": {"phases": [{"name": "short", "max_prompt_tokens": 300, "end": {"type": "steps", "steps": 1}}]},
    "groups_per_batch": 4,
    "rollout": {"engine": {"dtype": "fp32", "enforce_eager": True}, "group_size": 2, "max_response_tokens": 32},
    "reward": {"judge": {"type": "none"}},
    "learner": {"num_ranks": 1, "dtype": "fp32", "learning_rate": 0.0005, "max_tokens_per_microbatch": 2000},
}
"""A recipe that `check` accepts within a second."""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        found.append(key)
        for inner in _models(field.annotation):
            found += _keys(inner, f"{key}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


KEYS = tuple(dict.fromkeys(_keys(RunConfig)))
_LEAVES = tuple(key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS))
_MILD = (
    "0", "1", "2", "3", "7", "16", "64", "1000", "0.1", "0.5", "0.99", "1.0", "1.5", "true", "false", "null", "[]",
    "4294967295", "1e-3",
)  # fmt: skip
NAMES = (
    "recipe",
    "override",
    "model",
    *sorted({part for key in KEYS for part in key.split(".")}, key=len, reverse=True),
)


def make(rng: random.Random, folder: Path) -> Trial:
    """Write a hostile recipe."""
    recipe = folder / "recipe.yaml"
    content = yaml.safe_dump(SMALL, sort_keys=False).encode()
    arguments: list[str] = []
    kind = rng.randrange(-2, 9)
    if kind < 0:
        arguments = [f"{rng.choice(_LEAVES)}={rng.choice(_MILD)}" for _ in range(rng.choice((1, 2, 4)))]
    elif kind <= 2:
        arguments = [f"{rng.choice(KEYS)}={rng.choice(YAML_VALUES)}" for _ in range(rng.choice((1, 1, 2, 3)))]
        arguments = [argument.replace("\0", "") for argument in arguments]
    elif kind == 3:
        content = _with_value(rng, content)
    elif kind == 4:
        content = damaged(rng, content)
    elif kind == 5:
        content = rng.choice((bomb(rng).encode(), content + bomb(rng).encode(), bomb(rng).encode() + content))
    elif kind == 6:
        content = _shuffled_lines(rng, content)
    elif kind == 7:
        content = _extending(rng, folder)
    else:
        arguments = [f"{rng.choice(('model.path', 'model.path', 'reward.judge.model'))}={_damaged_model(rng, folder)}"]
        arguments += ["reward.judge.type=vllm", "reward.judge.max_model_len=1024"] if "judge" in arguments[0] else []
    recipe.write_bytes(content)
    return Trial(arguments=("check", str(recipe), *arguments), names=NAMES)


def _with_value(rng: random.Random, content: bytes) -> bytes:
    """Replace the value of one line of the recipe, or add a line with a key and a value."""
    lines = content.decode().splitlines()
    value = rng.choice(YAML_VALUES)
    place = rng.randrange(len(lines))
    key, colon, _ = lines[place].partition(":")
    lines[place] = f"{key}{colon} {value}" if rng.random() < 0.7 else f"{rng.choice(KEYS).split('.')[0]}: {value}"
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _shuffled_lines(rng: random.Random, content: bytes) -> bytes:
    """Drop, double, indent or move lines, as a slip in an editor does."""
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                del lines[place]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 2:
                lines[place] = "  " + lines[place]
            case 3:
                lines[place] = lines[place].lstrip()
            case _:
                lines += lines[place : place + rng.randrange(1, 6)]
    return ("\n".join(lines) + "\n").encode()


def _extending(rng: random.Random, folder: Path) -> bytes:
    """Write a recipe that extends others: itself, a folder, nothing, a chain, a damaged one."""
    base = folder / "base.yaml"
    base.write_bytes(
        damaged(rng, yaml.safe_dump(SMALL).encode()) if rng.random() < 0.5 else yaml.safe_dump(SMALL).encode()
    )
    for link in range(30):
        (folder / f"c{link}.yaml").write_text(
            f"extends: {'base' if link == 29 else f'c{link + 1}'}.yaml\nseed: {link}\n"
        )
    parent = rng.choice(("base.yaml", "recipe.yaml", ".", "gone.yaml", "c0.yaml", "3", "[a, b]", "{a: 1}",
    "null", "''", "x" * 300,
                         "'a\\0b'", '"a\\0b"', "/dev/zero", "/dev/null", "~", "'~nobody_here/x'",
                         "y/" * 3000))  # fmt: skip
    key = rng.choice(KEYS)
    return f"extends: {parent}\n{key.split('.')[0]}: {rng.choice(YAML_VALUES)}\n".encode("utf-8", "surrogatepass")


def _damaged_model(rng: random.Random, folder: Path) -> Path:
    """Copy the base model; damage one of its files, or one value of its configuration."""
    model = folder / "model"
    shutil.copytree(SMALL["model"]["path"], model)
    if rng.random() < 0.5:
        file = rng.choice([path for path in sorted(model.iterdir()) if path.is_file()])
        if rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(damaged(rng, file.read_bytes()))
        return model
    file = model / rng.choice(("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"))
    values = json.loads(file.read_text(encoding="utf-8"))
    values[rng.choice((*values, "rope_scaling", "rope_parameters", "architectures"))] = json_value(rng)
    file.write_text(json.dumps(values))
    return model
