"""The one line that every benchmark prints: its claims, whether they hold, and how they were measured."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One measured number beside what was promised."""

    name: str
    value: float
    unit: str
    goal: str
    """As it was promised, for example ">= 5000"."""
    holds: bool

    @classmethod
    def at_least(cls, name: str, value: float, unit: str, goal: float) -> Claim:
        """A claim that holds from `goal` on upwards."""
        return cls(name=name, value=value, unit=unit, goal=f">= {goal:g}", holds=value >= goal)

    @classmethod
    def above(cls, name: str, value: float, unit: str, bound: float) -> Claim:
        """A claim without a promised size: it holds if there is any gain beyond `bound`."""
        return cls(name=name, value=value, unit=unit, goal=f"> {bound:g}", holds=value > bound)

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, goal: float) -> Claim:
        """A claim that holds from `goal` on downwards."""
        return cls(name=name, value=value, unit=unit, goal=f"<= {goal:g}", holds=value <= goal)


def print_line(benchmark: str, claims: Sequence[Claim], detail: Mapping[str, Any]) -> None:
    """Prints the line to standard output, and nothing else; progress belongs to `say`."""
    line = {"benchmark": benchmark, "claims": [asdict(claim) for claim in claims], "detail": dict(detail)}
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Tells people about progress, on standard error."""
    sys.stderr.write(text + "\n")


def environment(*packages: str) -> dict[str, Any]:
    """What a number depends on: Python, package versions, cores and the thread setting."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
