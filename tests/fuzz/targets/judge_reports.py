"""`qwenlong judge-report`: labelled pairs, and the trajectories of a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.fuzz.targets.data import _typed_table
from tests.fuzz.targets.scores import hostile_row, judge_options, rows_bytes
from tests.fuzz.trial import Trial
from tests.fuzz.values import damaged

PAIR: dict[str, Any] = {
    "question": "q",
    "prediction": "7",
    "ground_truth": "seven",
    "label": True,
    "data_source": "docmath",
}
NAMES = (
    "--out",
    "--judge",
    "--judge-model",
    "--examples",
    ".jsonl",
    ".parquet",
    "FILE",
    "PAIRS",
    "http",
    "run",
    "folder",
)
COLUMNS = ("question", "truth", "answer", "judge", "data_source")


def make(rng: random.Random, folder: Path) -> Trial:
    """Write pairs, or a run with trajectories, and choose options."""
    out: Path | str | None = folder / "out.json"
    if rng.random() < 0.2:
        out = rng.choice((None, folder, folder / "gone" / "x", folder / ("y" * 300), "", "/dev/full"))
    examples = ["--examples", rng.choice(("0", "3", "-1", "x", "9" * 30))] if rng.random() < 0.1 else []
    source = _pairs(rng, folder) if rng.random() < 0.5 else _run(rng, folder)
    options = [*(["--out", str(out)] if out is not None else []), *examples, *judge_options(rng)]
    return Trial(arguments=("judge-report", str(source), *options), names=NAMES)


def _pairs(rng: random.Random, folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(rows_bytes(rng, [hostile_row(rng, PAIR) for _ in range(rng.choice((0, 1, 4)))]))
    return rng.choice((path, path, path, path, folder / "gone.jsonl"))


def _run(rng: random.Random, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    trajectories = folder / "run" / "trajectories"
    trajectories.mkdir(parents=True)
    rows = [
        {
            "question": rng.choice(("q", None, "", 3, ["q"])) if rng.random() < 0.3 else "q",
            "truth": rng.choice((["7"], [], None, ["7", None], "7", [1])) if rng.random() < 0.3 else ["7"],
            "answer": rng.choice(("7", None, "", "seven", "x" * 3000)),
            "judge": rng.choice((None, "yes", "no", "unknown", "maybe", "")),
            "data_source": rng.choice(("d", None, "docmath")),
        }
        for _ in range(rng.choice((1, 3)))
    ]
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException:
        table = pa.table({column: pa.array(["a"]) for column in COLUMNS})
    if rng.random() < 0.2:
        typed = _typed_table(rng)
        arrays = {name: typed.column(min(i, typed.num_columns - 1)) for i, name in enumerate(COLUMNS)}
        table = pa.table(arrays)
    path = trajectories / "step-000001.parquet"
    try:
        pq.write_table(table, path)
    except pa.ArrowException:
        pq.write_table(pa.table({column: ["a"] for column in COLUMNS}), path)
    if rng.random() < 0.4:
        path.write_bytes(damaged(rng, path.read_bytes()))
    if rng.random() < 0.05:
        path.unlink()
        path.mkdir()
    return rng.choice((*(folder / "run",) * 6, trajectories, trajectories, path, path, folder, folder / "gone"))
