"""JSONL files of the commands that score: bad rows are printed and counted, a written file appears whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from curriculum.errors import UserError
from curriculum.files import check_writable, file_errors, whole_file
from curriculum.printable import printable, printable_json
from curriculum.rejects import Reject
from curriculum.sources import open_table

Record = TypeVar("Record")


class RowReader:
    """A reader of the good rows of a JSONL file; the others go to standard error with their line numbers."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UserError: it is not there, or not a JSONL file.
        """
        if path.suffix.lower() != ".jsonl":
            raise UserError(f"{path}: expected a .jsonl file with one JSON object per line")
        self._path = path
        self._rows = open_table(str(path), key="FILE").rows
        self.num_bad = 0

    def records(self, read: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
        """Yield what `read` makes of every row; `read` raises ValueError for a bad one."""
        for row in self._rows:
            try:
                if isinstance(row, Reject):
                    raise ValueError(row.detail)
                yield read(row.values)
            except ValueError as error:
                self.num_bad += 1
                sys.stderr.write(printable(f"{self._path} line {row.number}: {error}") + "\n")


@contextmanager
def json_writer(path: Path | None, *, indent: int | None = None) -> Generator[Callable[[Mapping[str, Any]], None]]:
    """Write JSON objects to a file that appears whole when the block ends, or to standard output where it is None.

    Raises:
        UserError: the folder of the file does not exist, or the file cannot be written.
    """
    if path is None:
        yield lambda record: _write(sys.stdout.buffer, record, indent)
        sys.stdout.flush()
        return
    name = f"--out {path}"
    check_writable(path, name=name)
    with whole_file(path, name=name) as partial:
        with file_errors(name, "written"):
            file = partial.open("wb")

        def write(record: Mapping[str, Any]) -> None:
            with file_errors(name, "written"):
                _write(file, record, indent)

        try:
            yield write
        finally:
            with file_errors(name, "written"):
                file.close()


def _write(file: Any, record: Mapping[str, Any], indent: int | None) -> None:
    """Write one object; what a terminal would obey, and a lone surrogate, becomes its JSON escape."""
    file.write((printable_json(json.dumps(record, ensure_ascii=False, indent=indent)) + "\n").encode("utf-8"))
