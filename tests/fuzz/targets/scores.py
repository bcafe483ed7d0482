"""`qwenlong score`: rows, options and output files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.endpoint import LyingEndpoint
from tests.fuzz.trial import Trial
from tests.fuzz.values import WORDS, damaged, json_value, text

ROW: dict[str, Any] = {
    "id": 1, "data_source": "docmath", "question": "how many?", "response": "<think>x</think> the answer is 7",
    "ground_truth": "7"
}  # fmt: skip
NO_URLS = (
    "http://", "http://[::1", "http://a:b:c", "http://127.0.0.1:1", "https://127.0.0.1:99999", "http://x y",
    "http://127.0.0.1:9/\u2028", "http://é.invalid.", "http://" + "a" * 300, "ftp://x", "none/none", "http://u:p@[v1.x]/",
)  # fmt: skip
NAMES = ("--out", "--judge", "--judge-model", "--rules", ".jsonl", "FILE", "IN.jsonl", "http")


def make(rng: random.Random, folder: Path) -> Trial:
    """Write rows, and choose options."""
    path = folder / "rows.jsonl"
    rows = [_row(rng, ROW) for _ in range(rng.choice((0, 1, 4, 9)))]
    path.write_bytes(rows_bytes(rng, rows))
    source = str(path)
    if rng.random() < 0.1:
        bad = (folder, folder / "gone.jsonl", f"{path}x", "a/" * 2500 + ".jsonl", "x.jsonl/y.jsonl")
        source = str(rng.choice(bad))
    return Trial(arguments=("score", source, *_options(rng, folder, path)), names=NAMES)


def rows_bytes(rng: random.Random, rows: list[Any]) -> bytes:
    """Return the rows as JSONL, some of them damaged."""
    content = "\n".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows).encode(
        "utf-8", "surrogatepass"
    )
    return damaged(rng, content) if rng.random() < 0.3 else content


def judge_options(rng: random.Random) -> list[str]:
    """Return options that name a judge, or something that is none."""
    kind = rng.random()
    if kind < 0.4:
        return []
    if kind < 0.9:
        endpoint = LyingEndpoint.of_this_process()
        endpoint.begin(rng)
        path = rng.choice(("", "/", "/v1", "/v1/chat/completions", "/x?y=z#q"))
        name = ["--judge-model", rng.choice(("m", "m/n", "x" * 300, "é"))] if rng.random() < 0.7 else []
        return ["--judge", endpoint.url + path, *name]
    judge = rng.choice((*WORDS, *NO_URLS)).replace("\0", "")
    return ["--judge", judge, *(["--judge-model", "m"] if rng.random() < 0.3 else [])]


def _options(rng: random.Random, folder: Path, path: Path) -> list[str]:
    out: Path | str | None = folder / "out.jsonl"
    if rng.random() < 0.2:
        bad = (folder, folder / "gone" / "x", path, path / "x", folder / ("y" * 300), "", "/dev/full", "/proc/x")
        out = rng.choice((None, *bad))
    rules = rng.choice(("strict", "released")) if rng.random() < 0.95 else rng.choice(("nope", ""))
    return [*(["--out", str(out)] if out is not None else []), "--rules", rules, *judge_options(rng)]


def _row(rng: random.Random, good: dict[str, Any]) -> Any:
    row: Any = dict(good)
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice((*row, "extra")) if row else "extra"
        match rng.randrange(4):
            case 0:
                row.pop(key, None)
            case 1:
                row[key] = text(rng)
            case _:
                row[key] = json_value(rng)
    return json_value(rng) if rng.random() < 0.05 else row


hostile_row = _row
