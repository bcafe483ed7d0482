"""The folder of an evaluation: settings, answers and scores, written so that a killed process loses nothing.

`answers.jsonl`, `scores.jsonl` and `behaviours.jsonl` only grow, one JSON object per line, each line on disk before
the next step is taken. The last line of a key counts. An incomplete last line, which a killed process may leave, is
dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from curriculum.config import dotted
from curriculum.errors import UserError, library_words, shortened
from curriculum.files import file_errors, lock_file, write_text
from evaluation.record import Answer, CountedAnswer, ScoredAnswer

RecordT = TypeVar("RecordT", Answer, ScoredAnswer, CountedAnswer)


class JsonlLog(Generic[RecordT]):
    """An append-only file of records of one kind; the last record of a key counts."""

    def __init__(self, path: Path, parse: Callable[[dict[str, Any]], RecordT]) -> None:
        """Read what is there and open the file for more.

        Raises:
            UserError: a line in the middle is damaged, or the file cannot be opened.
        """
        self._records: dict[tuple[str, str, int], RecordT] = {}
        self._path = path
        with file_errors(path, "read"):
            whole_bytes = self._read(path, parse) if path.exists() else 0
        with file_errors(path, "written"):
            self._file = path.open("ab")
        if self._file.tell() > whole_bytes:
            self._file.truncate(whole_bytes)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: tuple[str, str, int]) -> RecordT | None:
        """Return the record of a key; None where there is none."""
        return self._records.get(key)

    def append(self, record: RecordT) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            UserError: the file cannot be written, for a full disk, say.
        """
        line = json.dumps(asdict(record), ensure_ascii=True) + "\n"
        with file_errors(self._path, "written"):
            self._file.write(line.encode("ascii"))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._records[record.key] = record

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, path: Path, parse: Callable[[dict[str, Any]], RecordT]) -> int:
        """Read all whole lines; return their length in bytes."""
        whole_bytes = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = parse(json.loads(line))
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    what = f"{path}, line {number}: damaged ({library_words(error)})"
                    raise UserError(f"{what}; remove the line, its answer is then asked again") from error
                self._records[record.key] = record
                whole_bytes += len(line)
        return whole_bytes


class EvaluationFolder:
    """The folder of one evaluation or distillation; one process at a time."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Create the folder, or continue in one whose answers were drawn with the same settings.

        Args:
            path: The folder.
            settings: Everything that decides what an answer is, as nested JSON values.

        Raises:
            UserError: the answers there were drawn with other settings (it names them), the folder holds other things,
                another process is at work in it, or it cannot be written.
        """
        self.path = path
        with file_errors(f"--out {path}", "written"):
            if path.exists() and not self._settings_file.is_file() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"--out {path}: holds something else; choose another folder")
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_file(path / ".lock", busy=f"--out {path}: another process is at work there; wait for it")
        self._check(settings)
        self.answers: JsonlLog[Answer] = JsonlLog(path / "answers.jsonl", _reader(Answer))
        self.scores: JsonlLog[ScoredAnswer] = JsonlLog(path / "scores.jsonl", _reader(ScoredAnswer))
        self.counts: JsonlLog[CountedAnswer] = JsonlLog(path / "behaviours.jsonl", _reader(CountedAnswer))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answers.close()
        self.scores.close()
        self.counts.close()
        self._lock.close()

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        path = self.path / name
        write_text(path, text)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file whole or not at all."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @property
    def _settings_file(self) -> Path:
        return self.path / "settings.json"

    def _check(self, settings: Mapping[str, Any]) -> None:
        if not self._settings_file.is_file():
            self.write_json("settings.json", settings)
            return
        stored = dotted(_read_settings(self._settings_file))
        given = dotted(json.loads(json.dumps(settings)))
        differing = sorted(key for key in stored.keys() | given.keys() if stored.get(key) != given.get(key))
        if differing:
            shown = "; ".join(f"{key}={stored.get(key)!r} there, {given.get(key)!r} now" for key in differing)
            raise UserError(
                f"--out {self.path}: its answers were drawn with other settings ({shown}); use those, or another folder"
            )


def fingerprint(*parts: str) -> str:
    """Return 16 hex digits that depend on some texts."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", errors="backslashreplace"))
    return digest.hexdigest()[:16]


def _reader(kind: type[RecordT]) -> Callable[[dict[str, Any]], RecordT]:
    """Return what makes a record of a line; values of fields that an older version wrote are left out.

    It raises ValueError where a field is missing, or holds something else.
    """
    known, adapter = {field.name for field in fields(kind)}, TypeAdapter(kind)

    def read(values: dict[str, Any]) -> RecordT:
        try:
            return adapter.validate_python({key: values[key] for key in values if key in known})
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{key}={shortened(repr(fault['input']), 80)}: {fault['msg']}") from error

    return read


def _read_settings(path: Path) -> Any:
    with file_errors(path, "read"):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({library_words(error)}); choose another folder") from error
