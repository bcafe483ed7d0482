"""The small recipe: a few steps of everything, as overrides of `recipes/local.yaml`."""

from __future__ import annotations

import json
from pathlib import Path

from curriculum.synthetic import VALUES, generate_demonstrations, generate_items

NUM_SFT_STEPS, NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 2, 6
NUM_STEPS = NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS
BATCH_SIZE, GROUPS_PER_BATCH, GROUP_SIZE, NUM_HELDOUT = 16, 4, 8, 4


def small_recipe(folder: Path) -> dict[str, object]:
    """A few steps of everything, on questions that half of all answers satisfy: so groups vary from the first step."""
    short, long = {"min_words": 24, "max_words": 40}, {"min_words": 60, "max_words": 80}
    train = [
        row
        for name, lengths in {"short": short, "long": long}.items()
        for row in generate_items(num_items=16, **lengths, seed=1, prefix=f"train-{name}")
    ]
    heldout = [
        row
        for name, lengths in {"short": short, "long": long}.items()
        for row in generate_items(num_items=NUM_HELDOUT, **lengths, seed=2, prefix=f"heldout-{name}")
    ]
    demonstrations = generate_demonstrations(
        num_items=NUM_SFT_STEPS * BATCH_SIZE, **short, seed=3, quote_share=0.5, word_share=0.5, prefix="sft"
    )
    return {
        "name": "tiny",
        "data.train": write_jsonl(folder / "train.jsonl", [_easier(row) for row in train]),
        "data.sft": write_jsonl(folder / "sft.jsonl", demonstrations),
        "data.evaluation": write_jsonl(folder / "evaluation.jsonl", [_easier(row) for row in heldout]),
        "sft.epochs": 1,
        "sft.batch_size": BATCH_SIZE,
        "sft.learning_rate": 4e-3,
        "sft.warmup_steps": 4,
        "curriculum.phases": [
            {"name": "short", "max_prompt_tokens": 90, "end": {"type": "steps", "steps": NUM_SHORT_STEPS}},
            {"name": "long", "max_prompt_tokens": 160, "end": {"type": "steps", "steps": NUM_LONG_STEPS}},
        ],
        "curriculum.retrospective": {"selection": "difficulty", "max_share": 0.25},
        "groups_per_batch": GROUPS_PER_BATCH,
        "rollout.group_size": GROUP_SIZE,
        "rollout.max_response_tokens": 24,
        "reward.judge": {"type": "none"},
        "learner.learning_rate": 5e-4,
        "learner.max_tokens_per_microbatch": 2000,
        "checkpoint.every_steps": 5,
        "cluster.address": "local",
        "cluster.object_store_bytes": 200_000_000,
    }


def _easier(row: dict) -> dict:
    values = next(values for values in VALUES.values() if row["answers"][0] in values)
    return {**row, "answers": sorted({row["answers"][0], *values[::2]})}


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_jsonl(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
