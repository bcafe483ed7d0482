"""Columns of other names, mapped to ours before a layout is chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any, cast

from curriculum.cells import decoded
from curriculum.config import OurColumn
from curriculum.errors import UserError
from curriculum.rejects import Reject
from curriculum.rows import Row, Table

_ROWS_LOOKED_AT = 64


def loaded_columns(columns: Mapping[OurColumn, str]) -> frozenset[str]:
    """Return the columns that a mapping reads, nested ones by the column that they are in."""
    return frozenset(columns.values()) | {theirs.partition(".")[0] for theirs in columns.values()}


def mapped(table: Table, columns: Mapping[OurColumn, str], known: Collection[str], *, name: str) -> Table:
    """Return a table with our names beside theirs.

    Args:
        table: Rows, read once.
        columns: Their names by ours; dots lead into nested columns.
        known: Our names that the layouts of the table read; the others are of no concern here.
        name: `key=value` of the source, for messages.

    Raises:
        UserError: The table has neither their column nor ours.
    """
    relevant: dict[OurColumn, str] = {ours: theirs for ours, theirs in columns.items() if ours in known}
    if not relevant or not table.columns:
        return table
    head = list(islice(table.rows, _ROWS_LOOKED_AT))
    samples = [row.values for row in head if isinstance(row, Row)]
    for ours, theirs in relevant.items():
        if ours not in table.columns and (fault := _fault(theirs, table.columns, samples)):
            raise UserError(f"{name}: data.columns.{ours}={theirs}: {fault}")
    return replace(
        table,
        columns=_with_ours(table.columns, relevant),
        rows=_mapped_rows(chain(head, table.rows), relevant),
        columns_of={file: _with_ours(found, relevant) for file, found in table.columns_of.items()},
    )


def _with_ours(found: tuple[str, ...], columns: Mapping[OurColumn, str]) -> tuple[str, ...]:
    ours = [our for our, theirs in columns.items() if theirs in found or theirs.partition(".")[0] in found]
    return tuple(dict.fromkeys([*found, *ours]))


def _mapped_rows(rows: Iterator[Row | Reject], columns: Mapping[OurColumn, str]) -> Iterator[Row | Reject]:
    for row in rows:
        if isinstance(row, Row):
            new = {ours: _value(row.values, theirs) for ours, theirs in columns.items()}
            row = replace(
                row, values={**row.values, **{ours: value for ours, value in new.items() if value is not None}}
            )
        yield row


def _value(values: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a path, which may itself be the name of a column with dots; None where nothing does."""
    if path in values or "." not in path:
        return values.get(path)
    first, _, rest = path.partition(".")
    inside = decoded(values.get(first))
    return _value(cast("Mapping[str, Any]", inside), rest) if isinstance(inside, Mapping) else None


def _fault(path: str, columns: tuple[str, ...], samples: list[Mapping[str, Any]]) -> str | None:
    """Return why a path leads nowhere, with the nearest name; None if it leads somewhere."""
    first, _, rest = path.partition(".")
    if path in columns or (first in columns and any(_value(row, path) is not None for row in samples)):
        return None
    if first not in columns:
        return f"there is no column {first!r}{_nearest(first, columns)}; it has {', '.join(columns)}"
    inside = [decoded(row.get(first)) for row in samples]
    maps = [cast("Mapping[str, Any]", value) for value in inside if isinstance(value, Mapping)]
    names = tuple(dict.fromkeys(str(name) for value in maps for name in value))
    if not names:
        return f"{first} holds no named values in the first {len(samples)} rows; name a column"
    return _fault(rest, names, maps)


def _nearest(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""
