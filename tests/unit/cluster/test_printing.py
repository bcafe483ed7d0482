"""Names and texts from outside reach the terminal as text: in lines, in tables, beside bars, in commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.run.console import Console
from cluster.run.heldout_statistics import Evaluation
from cluster.run.progress import Progress, StageProgress
from curriculum.metric import member
from curriculum.printable import printable_lines
from curriculum.synthetic import generate_items
from evaluation.progress import Progress as EvaluationProgress
from tests.harness.heldout import a_cell

ROOT = Path(__file__).parents[3]
LOCAL = ROOT / "recipes" / "local.yaml"
ITEMS = generate_items(num_items=2, min_words=20, max_words=30, seed=0, prefix="i")
EVIL = "x\x1b[2J[bold]b[/bold][link=http://evil]l[/link]:smile:\u202e\nerror: forged\x9b1m"
SHOWN = r"x\x1b[2J[bold]b[/bold][link=http://evil]l[/link]:smile:\u202e\nerror: forged\x9b1m"


def harmless(text):
    """No character is left that a terminal obeys, and no line that the text brought along."""
    assert printable_lines(text) == text
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]


def test_a_line_of_a_run_shows_what_it_is_given(capsys):
    Console().say(f"fault: task={EVIL}")
    assert capsys.readouterr().err == f"fault: task={SHOWN}\n"


def test_a_line_of_an_evaluation_shows_what_it_is_given(capsys):
    EvaluationProgress().say(EVIL)
    assert capsys.readouterr().err == f"{SHOWN}\n"


def test_the_names_of_phases_are_text_in_lines_bars_and_the_table(capsys):
    console = Console()
    console.open_stage(EVIL)
    console.step(EVIL, 0, 2, {"learner/loss": 0.5})
    console.close_stage()
    cell = a_cell(0.5, low=0.25, high=0.75)
    metrics = {"heldout/rule": 0.5, "heldout/judge_saved": 0.0, "heldout/unknown": 0.0}
    cells = {"heldout/accuracy": cell, f"heldout/accuracy/{member(EVIL)}": cell}
    measured = Evaluation(step=2, num_samples=1, metrics=metrics, cells=cells)
    stage = StageProgress(name=EVIL, kind="rl", heldout=measured)
    console.summary(Progress(base_heldout=measured, finished_stages=[stage]))
    found = capsys.readouterr()
    assert "0.500 → 0.500" in found.out
    assert "0.500 [0.25, 0.75]" in found.out
    harmless(found.err + found.out)
    assert f"── {SHOWN}\n" in found.err
    assert "[bold]" in found.out, "markup is shown"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        harmless(result.stdout + result.stderr)
        return result

    return _run


def rows(*rows):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "rows.jsonl"


def test_an_inspection_shows_data_sources_as_text(run):
    items = [{**row, "data_source": EVIL} for row in ITEMS]
    result = run("data", "inspect", rows(*items), "--recipe", LOCAL, f"model.path={ROOT}/recipes/assets/local_base")
    assert result.exit_code == 0
    assert "[bold]" in result.stdout


def test_a_mistyped_key_and_a_file_name_are_text(run):
    result = run("check", LOCAL, f"{EVIL}=3")
    assert result.exit_code == 2
    assert SHOWN in result.stderr
    result = run("check", f"{EVIL}.yaml")
    assert r"\u202e\nerror: forged\x9b1m.yaml: no such file" in result.stderr


def test_wrong_columns_are_text(run):
    path = rows({EVIL: "a", "question": "b"})
    overrides = (f"model.path={ROOT}/recipes/assets/local_base", "reward.judge={type: none}")
    result = run("check", LOCAL, f"data.train={path}", *overrides)
    assert result.exit_code == 2
    assert SHOWN in result.stderr


def test_scores_of_hostile_answers_are_json_that_no_terminal_obeys(run):
    row = {"id": EVIL, "data_source": "a", "response": f"the answer is {EVIL}", "ground_truth": "7"}
    result = run("score", rows(row, {"id": EVIL}))
    assert json.loads(result.stdout)["id"] == EVIL


def test_a_report_on_a_judge_shows_answers_as_text(run):
    pair = {"question": EVIL, "prediction": EVIL, "ground_truth": "7", "label": True}
    assert run("judge-report", rows(pair, {"label": EVIL})).exit_code == 2
