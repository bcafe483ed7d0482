"""Memory of an update at the shapes of real models, from the learner's own code on tensors without values.

Prints the claim that a row whose responses go through the layers one by one takes little more than one prompt with one
response, and on standard error the table of docs/learner.md; with `--write` it goes there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.line import Claim, environment, print_line, say
from tests.harness.meta_learner import SIZES, Case, Peak, measure

GIB = 2**30
PARTS_AGAINST_ONE_PATH = 1.15
PAGE = Path(__file__).parents[1] / "docs" / "learner.md"
NOTICE = "<!-- written by `python -m benchmarks.meta_memory --write` -->"
COLUMNS = (
    "model", "ranks that share a row", "checkpointing", "group",
    "one path", "one path, inputs on host", "whole row", "whole row, inputs on host", "in parts",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
CLAIMED = "14B, one rank"

ROWS = {
    "1.5B, one rank": Case(size=SIZES["1.5B"], prompt=20_000, response=10_000, group=8),
    "1.5B, kept": Case(size=SIZES["1.5B"], prompt=20_000, response=10_000, group=8, checkpointing=False),
    "7B, SP 4": Case(size=SIZES["7B"], prompt=60_000, response=10_000, group=8, sequence_parallel=4),
    CLAIMED: Case(size=SIZES["14B"], prompt=60_000, response=10_000, group=8),
    "32B, SP 8": Case(size=SIZES["32B"], prompt=60_000, response=10_000, group=8, sequence_parallel=8),
}
IN_PARTS = (CLAIMED,)


def peaks(name: str) -> list[Peak | None]:
    """One path and the whole row, both also with the inputs of layers in host memory; in parts where it is measured."""
    case = ROWS[name]
    one_path = replace(case, group=1)
    offloaded = [measure(replace(x, offload=True)) if x.checkpointing else None for x in (one_path, case)]
    parts = measure(replace(case, parts=True)) if name in IN_PARTS else None
    return [measure(one_path), offloaded[0], measure(case), offloaded[1], parts]


def line(name: str, found: list[Peak | None]) -> str:
    """The row of the table."""
    case = ROWS[name]
    columns = [
        name.partition(",")[0],
        str(case.sequence_parallel),
        "on" if case.checkpointing else "off",
        f"{case.prompt // 1000}K + {case.group} × {case.response // 1000}K",
        *("–" if peak is None else _gib(peak, case) for peak in found),
    ]
    return f"| {' | '.join(columns)} |"


def _gib(peak: Peak, case: Case) -> str:
    alone = f"{peak.activations / GIB:.1f}"
    return alone if case.sequence_parallel > 1 else f"{alone} ({peak.on_one_card / GIB:.1f})"


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meta_memory", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/learner.md")
    options = parser.parse_args()
    found = {}
    for name in ROWS:
        found[name] = peaks(name)
        say(line(name, found[name]))
    if options.write:
        _write(HEAD + "\n".join(line(name, row) for name, row in found.items()))
    one_path, offloaded, *_, parts = found[CLAIMED]
    assert one_path is not None
    assert offloaded is not None
    assert parts is not None
    claims = [
        Claim.at_most(
            f"14B, in parts against {what}", parts.on_one_card / x.on_one_card, "ratio", PARTS_AGAINST_ONE_PATH
        )
        for what, x in {"one path": one_path, "one path with its inputs on the host": offloaded}.items()
    ]
    peaks_gib = {
        name: [peak and [peak.activations / GIB, peak.on_one_card / GIB] for peak in row] for name, row in found.items()
    }
    print_line("meta_memory", claims, {"gib": peaks_gib, "environment": environment("torch", "transformers")})


def _write(table: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, notice, rest = page.partition(NOTICE)
    _, end, after = rest.lstrip("\n").partition("\n\n")
    assert notice, f"{PAGE} has no line {NOTICE}"
    PAGE.write_text(f"{before}{notice}\n\n{table}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
