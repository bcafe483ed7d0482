"""The paper's results, read from the data file beside this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """One model of the paper's main table, in percent."""

    model: str
    accuracy: Mapping[str, float]
    """Per benchmark."""
    average: float
    """As printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """The paper's main table."""

    source: str
    benchmarks: tuple[str, ...]
    """Columns in their order."""
    rows: tuple[PaperRow, ...]


def paper_table() -> PaperTable:
    """QwenLong-L1, Table 4."""
    values = json.loads((files("evaluation") / "paper_results.json").read_text(encoding="utf-8"))
    return PaperTable(
        source=values["source"],
        benchmarks=tuple(values["benchmarks"]),
        rows=tuple(PaperRow(**row) for row in values["models"]),
    )
