"""Rows of one file: parquet, JSONL, JSON or CSV, the texts also compressed.

A line, object or record that cannot be read is a `Reject` in the stream of rows; a file that cannot be read is a
`UserError`. A file is open only while its rows are read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from curriculum.errors import UserError, described, library_words
from curriculum.rejects import Reject, RejectReason
from curriculum.rows import Row, Table

if TYPE_CHECKING:
    from pyarrow import RecordBatch

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMS = ".parquet, .jsonl, .json or .csv, the last three also with .gz or .zst"
"""What can be read, for messages."""

_ROWS_FOR_COLUMNS = 64
_ROWS_PER_BATCH = 64
_MAX_CELL_CHARS = 2**31 - 1
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")


def file_kind(path: Path) -> str | None:
    """Return the extension that says how a file is read, without that of its compression; None for an unknown one."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        kind = Path(path.stem).suffix.lower()
        return kind if kind in _TEXT_ROWS else None
    return suffix if suffix in _TEXT_ROWS or suffix == ".parquet" else None


def open_file(path: Path, *, name: str, shown: str, wanted: frozenset[str]) -> Table:
    """Open a file of a known kind.

    Args:
        path: The file.
        name: `key=value` of its source, for messages.
        shown: Name of the table.
        wanted: Columns to load where the form of the file allows to leave others out.

    Raises:
        UserError: It is not what its extension says.
        OSError: It cannot be read.
    """
    kind = file_kind(path)
    if kind == ".parquet":
        return _open_parquet(path, name, shown, wanted)
    if kind is None:
        raise UserError(f"{name}: unknown extension {path.suffix!r}; give {FORMS}")
    path.open("rb").close()  # an unreadable file is reported here, not in the middle of the rows
    rows = _text_rows(path, _TEXT_ROWS[kind], name)
    return Table(name=shown, columns=_first_columns(rows), rows=_text_rows(path, _TEXT_ROWS[kind], name))


def _first_columns(rows: Generator[Row | Reject]) -> tuple[str, ...]:
    columns: dict[str, None] = {}
    num_rows = 0
    for row in rows:
        if isinstance(row, Row):
            columns |= dict.fromkeys(row.values)
            num_rows += 1
        if num_rows == _ROWS_FOR_COLUMNS:
            break
    rows.close()
    return tuple(columns)


# ---- texts


def _text_rows(path: Path, read: Callable[[IO[bytes]], Iterator[Row | Reject]], name: str) -> Generator[Row | Reject]:
    """Yield the rows of a text file; damage is reported with the last row before it."""
    number = 0
    try:
        with _uncompressed(path) as stream:
            for row in read(stream):
                number = row.number
                yield row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        where = f"damaged after row {number}" if number else f"cannot be read as {file_kind(path)}"
        raise UserError(f"{name}: {where} ({library_words(error)}); write it again") from error


@contextmanager
def _uncompressed(path: Path) -> Generator[IO[bytes]]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None or not path.stat().st_size:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow

    with pyarrow.input_stream(str(path), compression=compression) as stream:
        yield BufferedReader(stream)


def _jsonl_rows(stream: IO[bytes]) -> Iterator[Row | Reject]:
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(_BOM) if number == 1 else line
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
    return _object_row(number, value)


def _object_row(number: int, value: Any) -> Row | Reject:
    if not isinstance(value, dict):
        detail = f"a JSON object is expected, got {described(value)}"
        return Reject(number=number, item_id=None, reason=RejectReason.BAD_JSON, detail=detail)
    return Row(number=number, values=cast("dict[str, Any]", value))


def _json_rows(stream: IO[bytes]) -> Iterator[Row | Reject]:
    """Read a list of objects, such a list under `data`, one object, or, where that fails, one object a line."""
    content = stream.read().removeprefix(_BOM)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        if not content.strip():
            return
        if not content.lstrip().startswith(b"{"):
            raise
        yield from _jsonl_rows(cast("IO[bytes]", iter(content.splitlines())))
        return
    inside = cast("dict[str, Any]", value).get("data") if isinstance(value, dict) else None
    entries: list[Any] = cast("list[Any]", inside) if isinstance(inside, list) else [value]
    if isinstance(value, list):
        entries = cast("list[Any]", value)
    for number, entry in enumerate(entries, start=1):
        yield _object_row(number, entry)


def _csv_rows(stream: IO[bytes]) -> Iterator[Row | Reject]:
    """Read records below a header; an empty cell is none, and cells are texts, whatever they look like."""
    text = TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_MAX_CELL_CHARS)
    first = text.readline()
    delimiter = max(",;\t", key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), list[str]())]
    if first and (len(set(header)) < len(header) or not all(header)):
        raise ValueError("its first line is no header of different column names")
    number = 0
    for cells in csv.reader(text, delimiter=delimiter):
        if cells:
            number += 1
            yield _record_row(number, header, cells)
    text.detach()


def _record_row(number: int, header: list[str], cells: list[str]) -> Row | Reject:
    if len(cells) != len(header):
        detail = f"it has {len(cells)} cells, the header {len(header)}; quote cells that hold separators or line breaks"
        return Reject(number=number, item_id=None, reason=RejectReason.WRONG_TYPE, detail=detail)
    if any(_SURROGATE.search(cell) for cell in cells):
        detail = "a cell is not UTF-8; convert the file"
        return Reject(number=number, item_id=None, reason=RejectReason.NOT_UTF8, detail=detail)
    return Row(number=number, values={name: cell or None for name, cell in zip(header, cells, strict=True)})


_TEXT_ROWS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}


# ---- parquet


def _open_parquet(path: Path, name: str, shown: str, wanted: frozenset[str]) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name}: not a parquet file ({library_words(error)}); write it again") from error
    used = [column for column in columns if column in wanted]
    return Table(name=shown, columns=columns, rows=_read_parquet(path, used, name))


def _read_parquet(path: Path, columns: list[str], name: str) -> Iterator[Row | Reject]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
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
