"""`qwenlong eval` and `distill` against an endpoint that lies, with folders that hold something else."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.fuzz.endpoint import LyingEndpoint
from tests.fuzz.targets.data import ROWS
from tests.fuzz.targets.recipes import SMALL
from tests.fuzz.targets.scores import hostile_row, judge_options
from tests.fuzz.trial import Trial
from tests.fuzz.values import damaged, json_value

NAMES = ("--out", "--judge", "--model-name", "--tokenizer", "benchmark", "MODEL", "--max-input", "--max-output", "http",
"prompts", ".jsonl", ".json",
         "--temperature", "--top-p", "--samples", "--seed", "--max-items", "--behaviours", "--concurrency",
         "max_", "temperature", "seed", "top_p")  # fmt: skip


def make(rng: random.Random, folder: Path) -> Trial:
    """Write questions and perhaps a folder of an earlier evaluation, and choose options."""
    questions = folder / "questions.jsonl"
    rows = [row if rng.random() < 0.8 else hostile_row(rng, row) for row in ROWS]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    endpoint = LyingEndpoint.of_this_process()
    endpoint.begin(rng)
    url = endpoint.url + rng.choice(("", "/v1", "/v1/chat/completions"))
    source = rng.choice(
        (str(questions),) * 40
        + (f"x={questions}", f"={questions}", f"x y={questions}", "frames", str(folder / "gone.jsonl"))
    )
    judge = judge_options(rng) if rng.random() < 0.3 else []
    options = [*_model(rng), *_folder(rng, folder), *_numbers(rng), *judge, "-q"]
    command = rng.choice(("eval", "eval", "distill"))
    if command == "eval" and rng.random() < 0.1:
        options += ["--behaviours", "--concurrency", "judge"]
    return Trial(arguments=(command, url, source, *options), names=NAMES)


def _model(rng: random.Random) -> list[str]:
    tokenizer = SMALL["model"]["path"] if rng.random() < 0.97 else rng.choice(("gone", "./gone", "m", "x" * 300, ""))
    name = ["--model-name", rng.choice(("m", "m/n", "é", "x" * 300))] if rng.random() < 0.6 else []
    return ["--tokenizer", tokenizer, *name]


def _folder(rng: random.Random, folder: Path) -> list[str]:
    """Return an output folder: new, a file, damaged, or with records that nobody wrote."""
    out = folder / "out"
    kind = rng.randrange(12)
    if kind == 0:
        out.write_text("x")
    elif kind == 1:
        out.mkdir()
        (out / "settings.json").write_bytes(damaged(rng, b'{"generator": "openai", "seed": 0}'))
    elif kind == 2:
        out.mkdir()
        (out / "other").touch()
    elif kind == 3:
        return ["--out", str(rng.choice((folder / ("y" * 300), "/proc/x", "/dev/null", "", "a/" * 2500)))]
    elif kind == 4:
        answer = {"benchmark": "local_hop1", "item_id": ROWS[0]["id"], "sample": 0, "seed": 0,
        "outcome": "complete", "text": "x",
                  "prompt_tokens": 1, "document_cut": False, "response_tokens": 1, "error": None}  # fmt: skip
        out.mkdir()
        for name in ("answers.jsonl", "scores.jsonl", "behaviours.jsonl"):
            record = {**answer, rng.choice(list(answer)): json_value(rng)}
            (out / name).write_bytes(json.dumps(record).encode() + b"\n")
        (out / "settings.json").write_text("{}")
    return ["--out", str(out)]


def _numbers(rng: random.Random) -> list[str]:
    options: list[str] = []
    for option in ("--temperature", "--top-p", "--samples", "--seed", "--max-items", "--max-output", "--concurrency"):
        if rng.random() < 0.02:
            options += [option, rng.choice(("0", "-1", "nan", "inf", "1e400", "x", "9" * 30, "", "1", "2"))]
    limit = rng.choice(("2000",) * 30 + ("1", "40", "9" * 30))
    return [*options, "--max-input", limit] if rng.random() < 0.98 else options
