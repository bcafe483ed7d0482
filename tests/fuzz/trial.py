"""One trial: a command with hostile input, and what is wrong with the way in which it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from curriculum.errors import MAX_LINE_CHARS

STATUSES = frozenset({0, 1, 2, 130})
"""Exit statuses of docs/operations.md that no fault of the program has."""
_INSIDES = re.compile(
    r"\b(?:Key|Type|Attribute|Index|Value|Name|Assertion|Recursion|Overflow|ZeroDivision|Unicode\w*|Lookup|Runtime|OS)"
    r"Error\b|NotImplementedError|NoneType|has no attribute|object is not|unsupported operand|positional argument"
    r"|list index|string indices|<class|\bat 0x[0-9a-f]{6,}|\[Errno|codec can't|pydantic|ArrowInvalid|StopIteration"
)
"""Words of Python that say nothing to the user of a command."""
_WAY_OUT = re.compile(
    r";|\bgive\b|should|must|expected|choose|missing|known:|did you mean|cannot be negative|Invalid value|Usage|Missing"
    r"|No such option|unexpected|requires"
)


class Kind(StrEnum):
    """What can be wrong."""

    TRACEBACK = "traceback"
    """A traceback, or a fault of the program (exit status 70)."""
    STATUS = "status"
    """An exit status that is not documented, or a failure without a line."""
    UNCLEAR = "unclear"
    """A line that names nothing that was given, shows no way out, speaks of Python, or is too long."""
    HANG = "hang"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A command."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    """What an error may name: files, keys, options; every error line must hold one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended."""

    status: int | None
    """None: it was stopped, for its time or its memory."""
    stderr: str
    traceback: str = ""
    stopped_for: Kind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong."""

    kind: Kind
    detail: str


def findings(trial: Trial, ending: Ending) -> list[Finding]:
    """Return everything that is wrong with an ending."""
    if ending.stopped_for is not None:
        return [Finding(kind=ending.stopped_for, detail=ending.traceback)]
    if ending.traceback or ending.status == 70 or "Traceback (most recent" in ending.stderr:
        return [Finding(kind=Kind.TRACEBACK, detail=ending.traceback or ending.stderr)]
    if ending.status not in STATUSES:
        return [Finding(kind=Kind.STATUS, detail=f"status {ending.status}: {ending.stderr}")]
    lines = ending.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if ending.status in (1, 2) and not lines:
        return [Finding(kind=Kind.STATUS, detail=f"status {ending.status} without a line")]
    if ending.status == 0 and errors:
        return [Finding(kind=Kind.STATUS, detail=f"status 0 with {errors[0]}")]
    return [
        Finding(kind=Kind.UNCLEAR, detail=f"{why}: {line}")
        for line in lines
        for why in _unclear(line, trial.names if line.startswith("error: ") else ())
    ]


def _unclear(line: str, names: Sequence[str]) -> list[str]:
    reasons: list[str] = []
    if len(line) > MAX_LINE_CHARS + 200:  # a path in front is not shortened
        reasons.append(f"{len(line)} characters")
    if found := _INSIDES.search(line):
        reasons.append(f"speaks of {found[0]!r}")
    if names and not any(name in line for name in names):
        reasons.append("names nothing that was given")
    if names and not _WAY_OUT.search(line):
        reasons.append("no way out")
    return reasons
