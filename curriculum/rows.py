"""Raw rows of a parquet file, a JSONL file, a data set of the hub, or the generator.

This module knows files, not layouts: a row is a mapping from column to whatever was stored there. A line that cannot
be read is a `Reject` in the stream of rows; a source that cannot be read is a `UserError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from curriculum.config import DemonstrationSource, GeneratedData, GeneratedJudgePairs
from curriculum.errors import UserError, described, in_line, library_words
from curriculum.files import expanded, file_errors
from curriculum.hub import is_hub_id
from curriculum.rejects import Reject, RejectReason
from curriculum.synthetic import GeneratedRow, generate_demonstrations, generate_items
from curriculum.synthetic_judge import JudgePrompt, generate_judge_pairs

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

USED_COLUMNS = frozenset(
    {"id", "data_source", "context", "question", "answers", "answer", "response", "prompt", "messages", "reward_model"}
    | {"_id", "dataset", "input", "question_id", "paragraphs", "ground_truth", "Prompt", "Answer"}
)
"""Columns that a layout reads, those of published benchmarks included; the others are not loaded."""

QUOTE_SHARE = WORD_SHARE = 0.5
"""Of generated demonstrations: share whose thinking quotes the document, share of numeric answers written as a word."""
GENERATED_SEEDS = {"train": 1, "sft": 2, "evaluation": 3}
"""By the part of `data` that the documents are for; no two parts draw the same documents."""
JUDGE_PAIRS_SEED = 1
MAX_GENERATED_WORDS = 500_000_000
"""Generated documents are held in memory."""

_SPLIT = re.compile(r"[\w.%\[\]:+-]*")
_ROWS_FOR_COLUMNS = 64
_ROWS_PER_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it was stored."""

    number: int
    """Line of a JSONL file, row of anything else; the first one is 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A source that could be opened."""

    name: str
    """The source as an error message shows it."""
    columns: tuple[str, ...]
    """Columns of a table; for JSONL the keys of its first objects."""
    rows: Iterator[Row | Reject]
    """Can be read once."""


def open_table(
    source: DemonstrationSource, *, key: str, demonstrations: bool = False, judge_prompt: JudgePrompt | None = None
) -> Table:
    """Open a source.

    Args:
        source: File, hub id or generated data.
        key: Recipe key of the source, for messages; its last part names the generated items.
        demonstrations: Generate items with responses.
        judge_prompt: Words of the judge, for generated judge pairs.

    Raises:
        UserError: There is no such file, its extension is unknown, file or hub id cannot be read, or judge pairs lack
            their prompt.
    """
    if isinstance(source, GeneratedData):
        _check_size(source, key)
        return _generate(source, role=key.rpartition(".")[2], demonstrations=demonstrations)
    if isinstance(source, GeneratedJudgePairs):
        if judge_prompt is None:
            raise UserError(f"{key}.type={source.type}: there is no judge prompt to fill; only data.sft takes it")
        rows = generate_judge_pairs(num_items=source.num_items, seed=JUDGE_PAIRS_SEED, prompt=judge_prompt)
        return Table(name=source.type, columns=tuple(rows[0]), rows=_number(rows))
    name = f"{key}={in_line(source)}"
    with file_errors(name, "read"):
        return _open_path(source, expanded(source, name=name), key)


def _open_path(given: str, path: Path, key: str) -> Table:
    source = in_line(given)
    if path.is_dir():
        raise UserError(f"{key}={source}: is a folder; name a .parquet or .jsonl file in it")
    if path.is_file():
        match path.suffix.lower():
            case ".parquet":
                return _open_parquet(source, path, key)
            case ".jsonl":
                return _open_jsonl(source, path)
            case suffix:
                raise UserError(f"{key}={source}: unknown extension {suffix!r}; give a .parquet or .jsonl file")
    if _looks_like_hub_id(given, path):
        return _open_hub(given, key)
    raise UserError(f"{key}={source}: no such file{_nearest_file(path)}; check the path")


def _looks_like_hub_id(source: str, path: Path) -> bool:
    name, _, split = source.partition(":")
    is_named_like_file = path.suffix.lower() in {".parquet", ".jsonl", ".json", ".csv", ".txt"}
    is_named_like_hub_id = is_hub_id(name) and bool(_SPLIT.fullmatch(split))
    return is_named_like_hub_id and not is_named_like_file and not path.parent.is_dir()


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


# ---- JSONL


def _open_jsonl(source: str, path: Path) -> Table:
    path.open("rb").close()  # an unreadable file is reported here, not in the middle of the rows
    rows = _read_jsonl(path)
    head: list[Row | Reject] = []
    columns: dict[str, None] = {}
    for row in rows:
        head.append(row)
        if isinstance(row, Row):
            columns |= dict.fromkeys(row.values)
        if sum(isinstance(seen, Row) for seen in head) == _ROWS_FOR_COLUMNS:
            break
    return Table(name=source, columns=tuple(columns), rows=chain(head, rows))


def _read_jsonl(path: Path) -> Iterator[Row | Reject]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> Row | Reject:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8; convert the file"
        return Reject(number=number, item_id=None, reason=RejectReason.NOT_UTF8, detail=detail)
    except (ValueError, RecursionError) as error:
        detail = f"not a JSON value: {library_words(error)}"
        return Reject(number=number, item_id=None, reason=RejectReason.BAD_JSON, detail=detail)
    if not isinstance(value, dict):
        detail = f"a JSON object is expected, got {described(value)}"
        return Reject(number=number, item_id=None, reason=RejectReason.BAD_JSON, detail=detail)
    return Row(number=number, values=cast("dict[str, Any]", value))


# ---- parquet


def _open_parquet(source: str, path: Path, key: str) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{key}={source}: not a parquet file ({library_words(error)}); write it again") from error
    return Table(name=source, columns=tuple(file.schema_arrow.names), rows=_read_parquet(file, f"{key}={source}"))


def _read_parquet(file: ParquetFile, name: str) -> Iterator[Row | Reject]:
    from pyarrow import ArrowException

    used = [column for column in file.schema_arrow.names if column in USED_COLUMNS]
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=used):
            for index in range(batch.num_rows):
                number += 1
                yield _parse_record(number, batch.slice(index, 1))
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name}: damaged after row {number} ({library_words(error)}); write it again") from error


def _parse_record(number: int, record: RecordBatch) -> Row | Reject:
    from pyarrow import ArrowException

    try:
        return Row(number=number, values=record.to_pylist()[0])
    except UnicodeDecodeError as error:
        detail = f"a text column is not UTF-8 ({error.reason}); convert it"
        return Reject(number=number, item_id=None, reason=RejectReason.NOT_UTF8, detail=detail)
    except (ArrowException, ValueError, OverflowError) as error:  # a date of the year 50000, for instance
        detail = f"a cell holds a value that cannot be read ({library_words(error)}); correct it"
        return Reject(number=number, item_id=None, reason=RejectReason.WRONG_TYPE, detail=detail)


# ---- hub


def _open_hub(source: str, key: str) -> Table:
    name, _, split = source.partition(":")
    from datasets import load_dataset

    try:
        data = load_dataset(name, split=split or "train")
    except Exception as error:  # the library has many types for "not there", "no network" and "no such split"
        raise UserError(
            f"{key}={source}: neither a file here nor a data set that the hub delivers ({library_words(error)}); "
            "check the name and the network, or give a .parquet or .jsonl file"
        ) from error
    columns = tuple(data.column_names or ())
    used = data.select_columns([column for column in columns if column in USED_COLUMNS])
    return Table(name=source, columns=columns, rows=_number(used))


# ---- generator


def _check_size(source: GeneratedData, key: str) -> None:
    num_words = source.items_per_length * sum(longest for _, longest in source.lengths)
    if num_words > MAX_GENERATED_WORDS:
        raise UserError(
            f"{key}.items_per_length={source.items_per_length}: the documents would have up to {num_words} words, more "
            f"than the {MAX_GENERATED_WORDS} that memory should hold; lower it, or {key}.lengths"
        )


def _generate(source: GeneratedData, *, role: str, demonstrations: bool) -> Table:
    generate: Callable[..., list[GeneratedRow]] = generate_items
    if demonstrations:
        generate = partial(generate_demonstrations, quote_share=QUOTE_SHARE, word_share=WORD_SHARE)
    rows: list[GeneratedRow] = []
    for index, (min_words, max_words) in enumerate(source.lengths):
        rows += generate(
            num_items=source.items_per_length,
            min_words=min_words,
            max_words=max_words,
            seed=GENERATED_SEEDS[role],
            prefix=f"{role}-{index}",
        )
    return Table(name="generated", columns=tuple(rows[0]) if rows else (), rows=_number(rows))


def _number(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(number=number, values=values) for number, values in enumerate(rows, start=1))
