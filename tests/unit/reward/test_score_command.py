"""`qwenlong score` as a process of its own, as a user runs it, and its parts."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from reward.config import RewardConfig
from reward.hybrid import HybridScorer
from reward.score_rows import read_score_row, score_rows

ROOT = Path(__file__).parents[3]


def row(row_id, answer, truth="seven", **values):
    response = f"<think>\nhm\n</think>\n\nTherefore, the answer is {answer}."
    return {"id": row_id, "data_source": "musique", "response": response, "ground_truth": truth, **values}


def run(*arguments):
    command = [sys.executable, "-m", "cluster.cli", "score", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def written(path, *rows):
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_gets_one_line_in_order(tmp_path):
    source = written(
        tmp_path / "in.jsonl",
        row("a", "seven"),
        row(2, "the **Seven**", truth=["nine", "Therefore, the answer is seven"]),
        row("c", "8", question="how many ?", note="ignored"),
        {"id": "d", "data_source": "docmath_v1", "response": "I do not know", "ground_truth": 5},
    )
    done = run(source)
    assert done.returncode == 0
    assert records(done.stdout) == [
        {"id": "a", "answer": "seven", "rule": 1.0, "judge": None, "score": 1.0, "reason": "text equals the truth"},
        {"id": 2, "answer": "the Seven", "rule": 1.0, "judge": None, "score": 1.0, "reason": "text equals the truth"},
        {"id": "c", "answer": "8", "rule": 0.0, "judge": None, "score": 0.0, "reason": "text differs from the truth"},
        {"id": "d", "answer": None, "rule": 0.0, "judge": None, "score": 0.0, "reason": "no answer found"},
    ]
    assert "4 rows scored: 2 accepted by the rule" in done.stderr


def test_the_released_rules_give_the_released_scores(tmp_path):
    source = ROOT / "tests/data/released_dev.jsonl"
    out = tmp_path / "out.jsonl"
    done = run(source, "--rules", "released", "--out", out)
    assert (done.returncode, done.stdout) == (0, "")
    expected = {row["id"]: row["released_score"] for row in records(source.read_text(encoding="utf-8"))}
    assert {row["id"]: row["score"] for row in records(out.read_text(encoding="utf-8"))} == expected
    assert len(expected) == 300


def test_bad_rows_are_told_by_line_and_the_rest_is_scored(tmp_path):
    bad = [
        b'{"id": "x", "data_source"',
        b"\xff\xfe",
        b"[]",
        b'{"id": 10e3000}',
        b'{"id": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        row(None, "7"),
        row(True, "7"),
        {**row("y", "7"), "response": None},
        {**row("y", "7"), "response": ["7"]},
        {**row("y", "7"), "data_source": 7},
        {**row("y", "7"), "question": 7},
        row("y", "7", truth=""),
        row("y", "7", truth=[]),
        row("y", "7", truth=None),
        row("y", "7", truth={"answer": "7"}),
        row("y", "7", truth=["7", None]),
        row("y", "7", truth=float("nan")),
    ]
    source = written(tmp_path / "in.jsonl", row("first", "seven"), *bad, b"", row("last", "seven"))
    done = run(source)
    assert done.returncode == 2
    assert [(record["id"], record["score"]) for record in records(done.stdout)] == [("first", 1.0), ("last", 1.0)]
    *told, summary = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"{source} line {n}" for n in range(2, 2 + len(bad))]
    assert all(len(line) < 300 for line in told)
    assert f"{len(bad)} bad rows" in summary
    assert "Traceback" not in done.stderr


def test_hostile_text_is_scored_and_written_as_valid_json(tmp_path):
    rows = [
        row("\ud800", "\ud800\x00"),
        row("digits", "9" * 1_000_000, truth="37.5", data_source="docmath"),
        row("loop", "the answer is " * 70_000),
        row("chinese", "巴黎", truth="巴黎"),
    ]
    done = run(written(tmp_path / "in.jsonl", *rows), "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    scored = records((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [record["score"] for record in scored] == [0.0, 0.0, 0.0, 1.0]
    assert scored[0]["id"] == "\ud800"


def test_the_judge_is_asked_about_what_the_rule_rejects(tmp_path, endpoint):
    endpoint.yes = {"7"}
    endpoint.faults = [None] * 2
    endpoint.fault = (503, {}, "down")
    source = written(tmp_path / "in.jsonl", row("a", "seven"), row("b", "7"), row("c", "8"))
    done = run(source, "--judge", endpoint.url)
    assert done.returncode == 0, done.stderr
    scored = [(record["judge"], record["score"]) for record in records(done.stdout)]
    assert scored == [(None, 1.0), ("yes", 1.0), ("no", 0.0)]
    assert len(endpoint.requests) == 2
    assert {request["model"] for request in endpoint.requests} == {"the-judge"}


def test_a_judge_that_is_down_makes_scores_null_and_not_zero(tmp_path, dead_url):
    done = run(written(tmp_path / "in.jsonl", row("a", "seven"), row("b", "7")), "--judge", dead_url)
    assert done.returncode == 1, done.stderr
    assert "error: 1 of 1 questions to the judge have no verdict; most often, 1 times: " in done.stderr
    assert [(record["judge"], record["score"]) for record in records(done.stdout)] == [(None, 1.0), ("unknown", None)]
    assert "1 unknown" in done.stderr


def test_what_the_judge_could_not_decide_stands_at_the_end_with_the_commonest_reason(tmp_path, endpoint):
    refusal = (400, {}, '{"error": {"message": "context of 64 tokens"}}')
    endpoint.yes, endpoint.faults = {"7"}, [None, refusal]
    rows = [row("a", "7"), row("b", "8"), row("c", "9")]
    done = run(written(tmp_path / "in.jsonl", *rows), "--judge", endpoint.url, "--reward", "judge.max_concurrency=1")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 questions to the judge have no verdict; most often, 1 times: HTTP 400: context of 64" in done.stderr


def test_the_rewards_of_a_recipe_score_and_options_replace_its_keys(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"extends: {ROOT}/recipes/local.yaml\nreward: {{kinds: {{musique: numeric}}, thinking: required}}\n"
    )
    numbers = row("a", "7.0", truth="7"), {**row("b", "7", truth="7"), "response": "the answer is 7"}
    source = written(tmp_path / "in.jsonl", *numbers)
    none = ("--judge", "none")
    assert [r["rule"] for r in records(run(source, "--recipe", recipe, *none).stdout)] == [1.0, 0.0]
    assert [r["rule"] for r in records(run(source, "--recipe", recipe, *none, "--thinking", "optional").stdout)] == [
        1.0,
        1.0,
    ]
    assert [r["rule"] for r in records(run(source, "--reward", "kinds.musique=numeric").stdout)] == [1.0, 1.0]
    assert [r["rule"] for r in records(run(source).stdout)] == [0.0, 1.0]


def test_a_key_that_is_none_of_the_rewards_is_one_line(tmp_path):
    done = run(written(tmp_path / "in.jsonl", row("a", "7")), "--reward", "judge.temperature=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: reward.judge.temperature=1: unknown key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "no such file"),
        (["in.txt"], "expected a .jsonl file"),
        (["in.jsonl", "--judge", "gpt"], "give none, a URL"),
        (["in.jsonl", "--rules", "lenient"], "lenient"),
        (["in.jsonl", "--judge-model", "m"], "only with --judge URL"),
        (["in.jsonl", "--out", "nowhere/out.jsonl"], "does not exist"),
        (["in.jsonl", "--out", "in.jsonl"], "this is the file that is read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments, message, tmp_path):
    source = written(tmp_path / "in.jsonl", row("a", "seven"))
    before = source.read_bytes()
    paths = [str(tmp_path / word) if "jsonl" in word or "txt" in word else word for word in arguments]
    done = run(*paths)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert source.read_bytes() == before


def test_the_rows_of_a_chunk_are_judged_together():
    class FakeJudge:
        def __init__(self):
            self.at_once = self.most = 0

        async def judge(self, questions):
            self.at_once += len(questions)
            self.most = max(self.most, self.at_once)
            await asyncio.sleep(0.01)
            self.at_once -= len(questions)
            return ["no"] * len(questions)

    judge = FakeJudge()
    rows = [read_score_row(row(i, str(i))) for i in range(20)]
    scores = asyncio.run(score_rows(HybridScorer(RewardConfig(), judge), rows))
    assert [score.answer for score in scores] == [str(i) for i in range(20)]
    assert judge.most == 20
