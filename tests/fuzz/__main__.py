"""`make fuzz [SEED=n]`: run a round of hostile inputs, print the counts, and leave what was found in a folder."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.preparation import prepare_process
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import Kind
from tests.fuzz.workers import Input, Outcome, run_inputs


def main() -> int:
    """Run the command; return 1 where something was found."""
    options = _options()
    root = Path(options.findings).resolve() / f"seed-{options.seed}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    prepare_process()
    inputs = _inputs(options.seed, options.share, options.only)
    started, ran, found = time.monotonic(), Counter[str](), Counter[tuple[str, Kind]]()
    accepted = Counter[str]()
    for outcome in run_inputs(inputs, root=root, num_workers=options.workers):
        ran[outcome.input.target] += 1
        accepted[outcome.input.target] += outcome.status == 0
        found.update({(outcome.input.target, finding.kind) for finding in outcome.findings})
        _report(outcome, root)
        if sum(ran.values()) % 500 == 0:
            print(f"{sum(ran.values())} of {len(inputs)} inputs, {time.monotonic() - started:.0f} s", flush=True)
    print(_table(ran, accepted, found))
    print(f"{sum(ran.values())} inputs in {time.monotonic() - started:.0f} s, seed {options.seed}")
    if found:
        print(
            f"inputs with findings: {root}; again with: python -m tests.fuzz --seed {options.seed} --only TARGET/INDEX"
        )
        return 1
    shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of a whole round, for a short one")
    parser.add_argument("--only", nargs="*", default=[], metavar="TARGET[/INDEX]", help="these targets or inputs only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--findings", default="build/fuzz", help="folder of the inputs with findings")
    return parser.parse_args()


def _inputs(seed: int, share: float, only: list[str]) -> list[Input]:
    inputs = [
        Input(seed=seed, target=target, index=index)
        for target, (_, number) in TARGETS.items()
        for index in range(max(1, round(number * share)))
    ]
    return [given for given in inputs if not only or given.target in only or str(given) in only]


def _report(outcome: Outcome, root: Path) -> None:
    for finding in outcome.findings:
        last = finding.detail.strip().splitlines()[-1:] or [""]
        print(f"{outcome.input}: {finding.kind}: {last[0][:300]}", file=sys.stderr, flush=True)
    if outcome.findings:
        folder = root / outcome.input.target / str(outcome.input.index)
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(f"{finding.kind}: {finding.detail}" for finding in outcome.findings)
        command = " ".join(map(repr, outcome.arguments))
        (folder / "finding.txt").write_text(f"{command}\n\n{text}\n", encoding="utf-8", errors="backslashreplace")


def _table(ran: Counter[str], accepted: Counter[str], found: Counter[tuple[str, Kind]]) -> str:
    rows = [["target", "inputs", "accepted", *Kind]]
    rows += [
        [target, str(count), str(accepted[target]), *(str(found[target, kind]) for kind in Kind)]
        for target, count in ran.items()
    ]
    totals = [str(sum(found[target, kind] for target in ran)) for kind in Kind]
    rows.append(["all", str(sum(ran.values())), str(sum(accepted.values())), *totals])
    return "\n".join(f"{row[0]:<14}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
