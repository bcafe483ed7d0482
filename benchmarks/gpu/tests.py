"""The tests in tests/gpu as a measurement: how many hold, and why others were left out."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.options import parse
from benchmarks.line import Claim, environment, print_line

FOLDER = Path(__file__).parents[2] / "tests" / "gpu"
LEARNER = "test_learner_*.py"


class _Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: set[str] = set()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "skipped":
            self.reasons.add(str(report.longrepr[-1]))
        if report.outcome == "failed":
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.counts["failed"] += 1
            self.failed.append(report.nodeid)


def main() -> None:
    """Run them, print the line; what pytest says goes to standard error."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu.tests", description=__doc__)
    parser.add_argument("--of", choices=("learner", "engines"), required=True)
    options = parse(parser)
    name = f"gpu_tests_{options.of}"
    if options.of == "engines" and find_spec("vllm") is None:
        print_line(name, [], {"skipped": "vLLM is not installed"})
        return
    import pytest

    learner = sorted(FOLDER.glob(LEARNER))
    files = learner if options.of == "learner" else sorted(set(FOLDER.glob("test_*.py")) - set(learner))
    outcomes, stdout = _Outcomes(), sys.stdout
    sys.stdout = sys.stderr
    try:
        pytest.main(["-q", "-p", "no:cacheprovider", *map(str, files)], plugins=[outcomes])
    finally:
        sys.stdout = stdout
    claims = [Claim.at_most("failed tests", outcomes.counts["failed"], "tests", 0)]
    if options.device == "cuda":
        claims.append(Claim.at_least("passed tests", outcomes.counts["passed"], "tests", 1))
    detail = {**outcomes.counts, "failures": outcomes.failed, "skipped_because": sorted(outcomes.reasons)}
    print_line(name, claims, {**detail, "environment": environment("torch", "vllm")})


if __name__ == "__main__":
    main()
