"""A few inputs of `make fuzz`, and what it calls wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from curriculum.errors import MAX_LINE_CHARS
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import Ending, Kind, Trial, findings

ROOT = Path(__file__).parents[2]
TRIAL = Trial(arguments=("check",), names=("seed",))


def kinds(*lines, status=2, **more):
    ending = Ending(status=status, stderr="".join(f"{line}\n" for line in lines), **more)
    return [finding.kind for finding in findings(TRIAL, ending)]


def test_a_line_with_key_and_way_out_is_clear():
    assert kinds("error: seed=-1: must not be negative; give 0") == []


@pytest.mark.parametrize(
    "line",
    [
        "error: something is wrong; change it",
        "error: seed=-1 is bad",
        "error: seed=-1: KeyError; give 0",
        "error: seed=-1: 'NoneType' is not iterable; give 0",
        "error: seed=" + "1" * (MAX_LINE_CHARS + 200) + ": too large; give 0",
    ],
    ids=["names nothing", "no way out", "a class", "a type", "too long"],
)
def test_any_other_line_is_unclear(line):
    assert kinds(line) == [Kind.UNCLEAR]


@pytest.mark.parametrize(
    ("status", "lines", "kind"),
    [
        (70, ["error: seed"], Kind.TRACEBACK),
        (3, ["error: seed=1; give 0"], Kind.STATUS),
        (2, [], Kind.STATUS),
        (0, ["error: seed=1; give 0"], Kind.STATUS),
        (1, ["Traceback (most recent call last):"], Kind.TRACEBACK),
    ],
)
def test_statuses_and_lines_must_fit(status, lines, kind):
    assert kinds(*lines, status=status) == [kind]


def test_what_was_stopped_is_reported_as_such():
    assert kinds(status=None, stopped_for=Kind.HANG) == [Kind.HANG]


@pytest.mark.timeout(120)
def test_a_sample_of_every_target_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--seed=7", "--share=0.02", "--workers=1", f"--findings={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line][1:-2] == list(TARGETS)
