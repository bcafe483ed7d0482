"""Training, warm-up and held-out data: files of every form with wrong cells, wrong columns and damage."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import yaml

from curriculum.synthetic import generate_demonstrations
from tests.fuzz.targets.recipes import SMALL
from tests.fuzz.trial import Trial
from tests.fuzz.values import SURROGATE, damaged, json_value, text

ROWS = generate_demonstrations(
    num_items=3, min_words=40, max_words=60, seed=0, prefix="f", quote_share=0.5, word_share=0.5
)
PROMPT = "<text>\n{context}\n</text>\n\n{question}\n\nFormat your response as follows: x"


READINGS: tuple[tuple[str, ...], ...] = (
    (), (), (),
    ("data.prompt=keep",),
    ("data.prompt=keep", 'data.markers={context: ["<text>", "</text>"], question: ["", ""]}'),
    ("data.columns={answers: reward_model.ground_truth, question: extra}",),
    ("data.columns={context: question, question: context, response: messages.0}",),
)  # fmt: skip
"""Ways in which a recipe reads its rows."""


def make(rng: random.Random, folder: Path) -> Trial:
    """Write a recipe with a hostile data file, or inspect the file."""
    name = rng.choice(("rows", "rows", "r ö w", "x" * 200)) + rng.choice(
        (".jsonl", ".jsonl", ".parquet", ".parquet", ".json", ".csv", ".jsonl.gz", ".json.zst", ".csv.gz", ".csv.zst")
    )
    path = folder / name
    rows = [_row(rng) for _ in range(rng.choice((0, 1, 3, 5, 8)))]
    content = _parquet(rng, rows, path) if name.endswith(".parquet") else _packed(_text(rng, rows, name), name)
    if rng.random() < 0.3:
        content = damaged(rng, content)
    path.write_bytes(content)
    source = rng.choice(
        (str(path),) * 40
        + (str(folder), f"{folder}/*", f"{folder}/[r", str(path) + "x", "a/" * 1000, "/dev/null", "x" * 300 + ".jsonl")
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    names = ("data.train", "data.sft", "data.evaluation", "FILE", "--rejects", "recipe")
    kind = rng.randrange(4)
    if kind == 0:
        rejects = rng.choice(
            (folder / "rejects.jsonl", folder, folder / "gone" / "x", path / "x", folder / ("y" * 300))
        )
        return Trial(
            arguments=("data", "inspect", source, "--recipe", str(recipe), "--rejects", str(rejects)), names=names
        )
    key = ("train", "sft", "evaluation")[kind - 1]
    over_long = rng.choice(("drop", "truncate_middle"))
    given: Any = source
    if rng.random() < 0.2:
        other = folder / "other.json"
        other.write_bytes(_text(rng, [_row(rng) for _ in range(3)], other.name))
        given = rng.choice(([source, str(other)], [source], [source, source], []))
    arguments = ("check", str(recipe), f"data.{key}={json.dumps(given)}", f"data.over_long={over_long}")
    return Trial(arguments=(*arguments, *rng.choice(READINGS)), names=(*names, "data.columns"))


def _row(rng: random.Random) -> Any:
    """Return a row of one of the layouts, with something wrong in most of them."""
    own = rng.choice(ROWS)
    prompt = PROMPT.format(context=own["context"], question=own["question"])
    row: Any = rng.choice((
        dict(own),
        {"prompt": prompt, "data_source": "d", "reward_model": {"ground_truth": "7"}, "response": "x"},
        {"prompt": [{"role": "user", "content": prompt}], "data_source": "d",
        "reward_model": '{"ground_truth": 7}', "response": "x"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ))  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice((*row, "id", "answers", "answer", "extra"))
        match rng.randrange(4):
            case 0:
                row.pop(key, None)
            case 1:
                row[key] = text(rng)
            case _:
                row[key] = json_value(rng)
    if rng.random() < 0.05:
        return json_value(rng)
    return row


def _text(rng: random.Random, rows: list[Any], name: str) -> bytes:
    if ".csv" in name:
        return _csv(rng, rows)
    if ".jsonl" in name or rng.random() < 0.2:
        return _jsonl(rng, rows)
    value = rng.choice((rows, {"data": rows}, {"data": rows, "version": 1}, {"data": 3}, rows[:1]))
    return json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2))).encode(
        "utf-8", "surrogatepass"
    )


def _csv(rng: random.Random, rows: list[Any]) -> bytes:
    clean = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in clean for name in row))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=rng.choice(",;\t"), lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerow(names)
    for row in clean:
        cells = [row.get(name) for name in names]
        writer.writerow(
            [cell if isinstance(cell, str) else json.dumps(cell) for cell in cells][: rng.choice((99, 99, 3))]
        )
    return file.getvalue().encode("utf-8", "surrogatepass")


def _packed(content: bytes, name: str) -> bytes:
    import pyarrow as pa

    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if name.endswith(".zst") else content


def _jsonl(rng: random.Random, rows: list[Any]) -> bytes:
    ascii_only = rng.random() < 0.5
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if rng.random() < 0.1:
        lines.append(
            rng.choice(
                ("[" * 5000, '{"a": ' * 5000, "{", "nan", '{"a": 1} {"a": 2}', "9" * 5000, '{"id": ' + "9" * 5000 + "}")
            )
        )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _parquet(rng: random.Random, rows: list[Any], path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    clean = [row for row in rows if isinstance(row, dict)]
    try:
        table = pa.Table.from_pylist(clean)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        table = _typed_table(rng)
    if rng.random() < 0.3:
        table = _typed_table(rng)
    try:
        pq.write_table(table, path, compression=rng.choice(("snappy", "none", "zstd")))
    except pa.ArrowException:
        pq.write_table(pa.table({"id": ["a"]}), path)
    return path.read_bytes()


def _typed_table(rng: random.Random) -> Any:
    """Return a table whose columns have the right names and types that nobody expects."""
    import datetime
    import decimal

    import pyarrow as pa

    columns = ("id", "data_source", "context", "question", "answers", "response", "prompt", "reward_model", "messages")
    kinds = (
        pa.array([1, 2]), pa.array([1.5, float("nan")]), pa.array([b"\xff\xfe", b"x"]), pa.array([None, None]),
        pa.array([True, False]), pa.array([datetime.datetime(2024, 1, 1), None]), pa.array([datetime.date(1, 1,
        1), None]),
        pa.array([decimal.Decimal("1.5"), None]), pa.array([[1, None], []]), pa.array([["a"], ["b"]]),
        pa.array(["a", "b"]),
        pa.array([{"role": "user", "content": None}] * 2), pa.array([{"ground_truth": [b"x"]}] * 2),
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), pa.array(["a", "b"]).dictionary_encode(),
        pa.array([2**62, -(2**62)], pa.timestamp("ns")), pa.array([2**62, 1], pa.timestamp("s")),
        pa.array([2**40, 1], pa.duration("s")), pa.array([[b"\xff"], None]), pa.array([b"\xff",
        b"\xc3("]).cast(pa.binary()),
        pa.array([2**61, 1], pa.date64()),
    )  # fmt: skip
    chosen = {column: rng.choice(kinds) for column in columns if rng.random() < 0.8}
    table = pa.table(chosen or {"id": ["a", "b"]})
    if rng.random() < 0.2:
        bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"x"]).buffers())
        table = table.append_column("question" if "question" not in chosen else "extra", bad)
    assert SURROGATE
    return table
