"""Rows that were refused, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from curriculum.files import write_text


class RejectReason(StrEnum):
    """Why a row was refused."""

    NOT_UTF8 = "not_utf8"
    BAD_JSON = "bad_json"
    MISSING_COLUMN = "missing_column"
    WRONG_TYPE = "wrong_type"
    EMPTY = "empty"
    BAD_PROMPT = "bad_prompt"
    DUPLICATE = "duplicate"
    ID_CONFLICT = "id_conflict"
    OVER_LONG = "over_long"
    NOT_ENCODABLE = "not_encodable"
    UNPAYABLE = "unpayable"
    """No response can match its accepted answers by the rule of their kind, and no judge decides."""
    LEAK = "leak"
    """A held-out question whose document, or which itself, is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A refused row."""

    number: int
    """Line of a JSONL file, row of anything else; the first one is 1."""
    item_id: str | None
    """Id of the row where it has a readable one."""
    reason: RejectReason
    detail: str
    """One line that a person reads."""
    file: str | None = field(default=None, repr=False)
    """Its file, where the source has several."""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return place_of(self.number, self.file)


def place_of(number: int, file: str | None) -> str:
    """Return where a row stands, in words."""
    return f"row {number}" if file is None else f"row {number} of {file}"


class RowError(Exception):
    """Raised while a row is read; becomes a `Reject`."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Count rejects per reason, most frequent first."""
    return dict(Counter(reject.reason.value for reject in rejects).most_common())


def write_rejects(rejects: Sequence[Reject], path: Path, *, name: str | None = None) -> None:
    """Write one JSON object per reject, with `file` where the source has several; replace an existing file.

    Raises:
        UserError: It cannot be written.
    """
    records = [{name: value for name, value in asdict(reject).items() if name != "file" or value} for reject in rejects]
    lines = [json.dumps(record, ensure_ascii=True) + "\n" for record in records]
    write_text(path, "".join(lines), name=name)
