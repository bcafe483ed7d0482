"""The paper's results, read from the data file of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """The paper's main table, in percent."""

    source: str
    benchmarks: tuple[str, ...]
    """Columns in their order."""
    accuracy: Mapping[str, Mapping[str, float]]
    """By model, in the order of the rows, and by benchmark."""
    average: Mapping[str, float]
    """By model, as printed."""


def paper_table() -> PaperTable:
    """Return QwenLong-L1, Table 4."""
    values = json.loads((files("evaluation") / "paper_results.json").read_text(encoding="utf-8"))
    return PaperTable(
        source=values["source"],
        benchmarks=tuple(values["benchmarks"]),
        accuracy={row["model"]: row["accuracy"] for row in values["models"]},
        average={row["model"]: row["average"] for row in values["models"]},
    )
