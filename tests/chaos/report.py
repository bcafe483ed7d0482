"""What is printed: a JSON line for each fault, and a table of all."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from statistics import median

from tests.chaos.trial import Outcome


def line(outcome: Outcome) -> str:
    """One fault as a JSON object."""
    return json.dumps(asdict(outcome), ensure_ascii=False)


def table(outcomes: list[Outcome]) -> str:
    """All faults as a table in Markdown, by name."""
    rows = ["| fault | count | named in (s) | trains again after (s) | groups lost | steps repeated |"]
    rows.append("|---|---|---|---|---|---|")
    for name in sorted({outcome.fault for outcome in outcomes}):
        of_name = [outcome for outcome in outcomes if outcome.fault == name]
        named = _spread([outcome.named_s for outcome in of_name])
        recovered = _spread([outcome.recovered_s for outcome in of_name])
        lost, repeated = (sum(getattr(outcome, key) for outcome in of_name) for key in ("lost", "repeated"))
        rows.append(f"| {name} | {len(of_name)} | {named} | {recovered} | {lost} | {repeated} |")
    return "\n".join(rows)


def say(text: str) -> None:
    """Tell a person what is going on."""
    print(text, file=sys.stderr, flush=True)


def _spread(seconds: list[float | None]) -> str:
    """Median and maximum; one number where there is one."""
    known = [value for value in seconds if value is not None]
    if not known:
        return "–"
    return f"{known[0]:.1f}" if len(known) == 1 else f"{median(known):.1f} / {max(known):.1f}"
