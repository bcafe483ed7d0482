"""One file for each kind of input; `make` writes the files of a trial into a folder and returns its command."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.targets import data, endpoints, judge_reports, recipes, run_folders, scores
from tests.fuzz.trial import Trial

Make = Callable[[random.Random, Path], Trial]

TARGETS: dict[str, tuple[Make, int]] = {
    "recipes": (recipes.make, 2200),
    "data": (data.make, 1300),
    "scores": (scores.make, 800),
    "judge_reports": (judge_reports.make, 600),
    "endpoints": (endpoints.make, 500),
    "run_folders": (run_folders.make, 600),
}
"""Target -> how a trial is made, and how many of a whole round are of this kind."""
