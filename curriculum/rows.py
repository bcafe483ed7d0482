"""Raw rows and their table: a row is a mapping from column to whatever was stored there, before any layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curriculum.rejects import Reject, place_of

USED_COLUMNS = frozenset(
    {"id", "data_source", "context", "question", "answers", "answer", "response", "prompt", "messages", "reward_model"}
    | {"_id", "dataset", "input", "question_id", "paragraphs", "ground_truth", "Prompt", "Answer"}
)
"""Columns that a layout reads, those of published benchmarks included; the others are not loaded unless they are
mapped to one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it was stored."""

    number: int
    """Line of a JSONL file, row of anything else; the first one is 1."""
    values: Mapping[str, Any]
    file: str | None = field(default=None, repr=False)
    """Its file, where the source has several; the digest of a source goes by contents, so `repr` has no names."""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return place_of(self.number, self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A source that could be opened."""

    name: str
    """The source as an error message shows it."""
    columns: tuple[str, ...]
    """Columns of a table; for JSON and JSONL the keys of its first objects; of several files together."""
    rows: Iterator[Row | Reject]
    """Can be read once."""
    columns_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Columns of each file, where the source has several."""
