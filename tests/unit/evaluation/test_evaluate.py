"""Whole evaluations and distillations against a hand-written endpoint that answers, judges and counts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curriculum.errors import RunFailed, UserError
from evaluation.behaviour_judge import INSTRUCTION
from evaluation.config import DistillConfig, EndpointGenerator, EvaluationConfig, ExcludedSet, SamplingConfig
from evaluation.distill import distill
from evaluation.evaluate import evaluate
from evaluation.exclusion import PUBLISHED_TRAINING_SET, excluded_sets
from evaluation.progress import Progress
from evaluation.stages import StageModel, evaluate_stages
from reward.config import NoJudge, OpenAIJudge, RewardConfig

TOKENIZER = str(Path(__file__).parents[3] / "recipes" / "assets" / "local_base")
COUNTS = '{"grounding": 4, "subgoal_setting": 0, "backtracking": 0, "verification": 0}'
QUOTE = "the mill was sold in 1843 to the town"
ANSWERS = {
    "right": f'<think>The text says "{QUOTE}".</think>Therefore, the answer is 1843.',
    "judged": "<think>It is there.</think>Therefore, the answer is the year after 1842.",
    "wrong": '<think>It says "the mill burned down in the night".</think>Therefore, the answer is 1900.',
}


class Endpoint:
    """Counts its requests by kind; a question gets the answer whose name it contains.

    One that reads gives the wrong answer where the document does not hold the quotation.
    """

    def __init__(self):
        self.requests = {"answer": 0, "judge": 0, "count": 0}
        self.refused = set()
        self.reads = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
                status, text = outer.reply(messages)
                message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                           "usage": {"completion_tokens": len(text.split())}}  # fmt: skip
                content = json.dumps(message).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def reply(self, messages):
        user = messages[-1]["content"]
        if messages[0]["role"] == "system":
            self.requests["judge"] += 1
            return 200, "Both name the year. [[YES]]" if "1842" in user else "They differ. [[NO]]"
        if user.startswith(INSTRUCTION):
            self.requests["count"] += 1
            return 200, COUNTS
        self.requests["answer"] += 1
        if any(name in user for name in self.refused):
            return 400, ""
        if self.reads and QUOTE not in user:
            return 200, ANSWERS["wrong"]
        return 200, next(text for name, text in ANSWERS.items() if name in user)


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def source(tmp_path):
    rows = [
        {"id": name, "data_source": "musique", "context": f"Long ago {QUOTE}.", "question": f"When? ({name})",
         "answers": ["1843"]}
        for name in ANSWERS
    ]  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[]\n", encoding="utf-8")
    return str(path)


def generator(endpoint):
    return EndpointGenerator(base_url=endpoint.url, model="m", tokenizer=TOKENIZER, max_retries=0)


def config(endpoint, source, **values):
    defaults = {
        "sampling": SamplingConfig(max_prompt_tokens=400, max_response_tokens=50, num_samples=2),
        "reward": RewardConfig(judge=OpenAIJudge(base_url=endpoint.url, model="j")),
    }
    return EvaluationConfig(generator=generator(endpoint), sources=(source,), **{**defaults, **values})


def run(config, out):
    return evaluate(config, out=out, progress=Progress(quiet=True))


def test_an_evaluation_answers_judges_and_reports_and_asks_nothing_twice(endpoint, source, tmp_path):
    summary = run(config(endpoint, source), tmp_path / "e")
    row = summary.benchmarks["musique"]
    assert (row.num_items, row.num_answers) == (3, 6)
    assert row.accuracy.mean == pytest.approx(2 / 3)
    assert endpoint.requests == {"answer": 6, "judge": 2, "count": 0}  # equal questions share a verdict
    assert summary.reasoning["all"].grounding_precision == 0.5
    assert summary.rejects == {source: 1}
    assert run(config(endpoint, source), tmp_path / "e") == summary
    assert endpoint.requests["answer"] == 6
    assert endpoint.requests["judge"] == 2


def test_results_hold_offsets_that_point_at_the_evidence(endpoint, source, tmp_path):
    run(config(endpoint, source), tmp_path / "e")
    results = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    (passage,) = next(row["passages"] for row in results if row["item_id"] == "right")
    thinking = ANSWERS["right"].removeprefix("<think>")
    assert thinking[passage["start"] : passage["end"]] == QUOTE
    assert f"Long ago {QUOTE}."[passage["document_start"] : passage["document_end"]] == QUOTE
    assert passage["found"]


def test_another_judge_scores_again_without_generating_again(endpoint, source, tmp_path):
    run(config(endpoint, source), tmp_path / "e")
    summary = run(config(endpoint, source, reward=RewardConfig(judge=NoJudge())), tmp_path / "e")
    assert summary.benchmarks["musique"].accuracy.mean == pytest.approx(1 / 3)
    assert endpoint.requests["answer"] == 6


def test_another_temperature_is_refused_and_nothing_is_asked(endpoint, source, tmp_path):
    run(config(endpoint, source), tmp_path / "e")
    hotter = SamplingConfig(max_prompt_tokens=400, max_response_tokens=50, num_samples=2, temperature=1.0)
    with pytest.raises(UserError, match=r"temperature=0\.7 there, 1\.0 now"):
        run(config(endpoint, source, sampling=hotter), tmp_path / "e")
    assert endpoint.requests["answer"] == 6


def test_an_evaluation_without_a_single_answer_fails_and_goes_on_later(endpoint, source, tmp_path):
    endpoint.refused = set(ANSWERS)
    with pytest.raises(RunFailed, match=r"it refuses every request \(HTTP 400\); change"):
        run(config(endpoint, source), tmp_path / "e")
    endpoint.refused = set()
    assert run(config(endpoint, source), tmp_path / "e").benchmarks["musique"].num_answers == 6


def test_a_question_that_gets_no_answer_counts_as_wrong_until_it_gets_one(endpoint, source, tmp_path):
    endpoint.refused = {"right"}
    row = run(config(endpoint, source), tmp_path / "e").benchmarks["musique"]
    assert (row.num_answers, row.num_failed, row.accuracy.mean) == (6, 2, pytest.approx(1 / 3))
    endpoint.refused = set()
    row = run(config(endpoint, source), tmp_path / "e").benchmarks["musique"]
    assert (row.num_answers, row.num_failed, row.accuracy.mean) == (6, 0, pytest.approx(2 / 3))
    assert endpoint.requests["answer"] == 8


def test_the_judges_model_counts_behaviours_once(endpoint, source, tmp_path):
    counting = config(endpoint, source, behaviours="judge")
    assert run(counting, tmp_path / "e").reasoning["all"].behaviours["grounding"] == 4.0
    run(counting, tmp_path / "e")
    assert endpoint.requests["count"] == 6


def test_a_teachers_right_answers_become_demonstrations(endpoint, source, tmp_path):
    import pyarrow.parquet as pq

    settings = DistillConfig(
        generator=generator(endpoint),
        sources=(source,),
        sampling=SamplingConfig(max_prompt_tokens=400, max_response_tokens=50, num_samples=2),
        reward=RewardConfig(judge=OpenAIJudge(base_url=endpoint.url, model="j")),
        min_response_tokens=3,
        max_kept=2,
    )
    card = distill(settings, out=tmp_path / "d", progress=Progress(quiet=True))
    assert (card.num_questions, card.num_answers, card.num_kept, card.num_over_long) == (3, 6, 2, 0)
    assert {reason: count for reason, count in card.rejects.items() if count} == {"wrong": 2, "duplicate": 2}
    rows = pq.read_table(tmp_path / "d" / "sft.parquet").to_pylist()
    assert [row["response"] for row in rows] == [ANSWERS["right"], ANSWERS["judged"]]
    assert rows[0]["context"] == f"Long ago {QUOTE}."
    assert "| wrong | 2 |" in (tmp_path / "d" / "data_card.md").read_text()
    readable = [path.name for path in (tmp_path / "d", *(tmp_path / "d").iterdir()) if path.stat().st_mode & 0o077]
    assert readable == [], "by others"


def test_questions_with_documents_that_do_not_fit_are_not_asked(endpoint, source, tmp_path):
    settings = DistillConfig(
        generator=generator(endpoint), sources=(source,), sampling=SamplingConfig(max_prompt_tokens=10)
    )
    card = distill(settings, out=tmp_path / "d", progress=Progress(quiet=True))
    assert (card.num_questions, card.num_over_long, card.num_answers) == (0, 3, 0)
    assert endpoint.requests["answer"] == 0


# ---- questions that are trained on


DOCUMENTS = {name: f"{QUOTE}, says the {number} paper of the {name} series" for number, name in enumerate(ANSWERS)}


@pytest.fixture
def write(tmp_path):
    def _write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return _write


def question(name, **values):
    row = {"id": name, "data_source": "musique", "context": DOCUMENTS[name], "question": f"When? ({name})"}
    return {**row, "answers": ["1843"], **values}


def report_of(folder):
    return json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text()


def test_questions_that_leak_are_left_out_of_every_number_and_listed(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    trained = write("t.jsonl", [question("wrong", id="t1", question="Who?"), question("right", context="Other text.")])
    own = config(endpoint, source, exclude=excluded_sets([trained], [source]))
    row = run(own, tmp_path / "e").benchmarks["musique"]
    assert (row.num_items, row.accuracy.mean) == (2, 1.0)
    assert endpoint.requests["answer"] == 4
    report, text = report_of(tmp_path / "e")
    (comparison,) = report["comparisons"]
    assert (comparison["num_trained"], comparison["fault"]) == (2, None)
    assert comparison["matches"] == [
        {"benchmark": "musique", "item_id": "right", "overlap": "same question, another document",
         "trained_id": "right"},
        {"benchmark": "musique", "item_id": "wrong", "overlap": "same document", "trained_id": "t1"},
    ]  # fmt: skip
    assert "t.jsonl | MuSiQue | 0 | 1 | 0 | 1 | 1 |" in text


def test_rows_of_a_training_set_that_share_an_id_count_and_unreadable_ones_are_told(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    trained = write("t.jsonl", [question("right", id="1"), question("wrong", id="1"), {"id": "2"}])
    own = config(endpoint, source, exclude=excluded_sets([trained], [source]))
    assert run(own, tmp_path / "e").benchmarks["musique"].num_items == 1
    report, text = report_of(tmp_path / "e")
    assert (report["comparisons"][0]["num_trained"], report["comparisons"][0]["num_unreadable"]) == (2, 1)
    assert "1 rows of " in text


def test_an_exclusion_changes_no_answer_and_asks_nothing_twice(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    trained = write("t.jsonl", [question("wrong")])
    assert run(config(endpoint, source), tmp_path / "e").benchmarks["musique"].num_items == 3
    less = run(config(endpoint, source, exclude=excluded_sets([trained], [source])), tmp_path / "e")
    assert (less.benchmarks["musique"].num_items, endpoint.requests["answer"]) == (2, 6)
    assert run(config(endpoint, source), tmp_path / "e").benchmarks["musique"].num_items == 3
    assert endpoint.requests["answer"] == 6


def test_the_first_items_are_counted_without_those_that_leak(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    trained = write("t.jsonl", [question("right")])
    own = config(endpoint, source, max_items=2, exclude=excluded_sets([trained], [source]))
    assert run(own, tmp_path / "e").benchmarks["musique"].num_items == 2


def test_a_benchmark_of_which_nothing_is_left_is_refused_in_one_line(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    own = config(endpoint, source, exclude=excluded_sets([source], [source]))
    with pytest.raises(UserError, match="all 3 questions leak from it, none is left to ask") as refusal:
        run(own, tmp_path / "e")
    assert len(refusal.value.lines) == 1
    assert not (tmp_path / "e").exists()
    assert endpoint.requests["answer"] == 0


def test_a_named_set_that_cannot_be_read_ends_the_command(endpoint, source, tmp_path):
    own = config(endpoint, source, exclude=excluded_sets([str(tmp_path / "nothing.jsonl")], [source]))
    with pytest.raises(UserError, match=r"--exclude=.*nothing.jsonl: no such file"):
        run(own, tmp_path / "e")


def test_a_default_set_that_cannot_be_read_is_told_and_marks_the_number(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    missing = ExcludedSet(name="published", source=str(tmp_path / "no.jsonl"), is_required=False)
    assert run(config(endpoint, source, exclude=(missing,)), tmp_path / "e").benchmarks["musique"].num_items == 3
    report, text = report_of(tmp_path / "e")
    assert report["possibly_trained_on"] == ["musique"]
    assert "| MuSiQue † | 3 |" in text
    assert "**Not compared with published**" in text
    assert "no such file" in report["comparisons"][0]["fault"]


def test_docmath_is_compared_with_the_published_training_set_unless_it_is_turned_off():
    (default,) = excluded_sets([], ["docmath", "musique"])
    assert (default.source, default.benchmark) == (f"{PUBLISHED_TRAINING_SET}:train", "docmath")
    assert (default.is_required, default.fault) == (False, None)
    assert excluded_sets([], ["docmath=our.jsonl"]) == (default,)
    assert excluded_sets([], ["musique"]) == ()
    (off,) = excluded_sets(["none"], ["docmath"])
    assert off.fault == "turned off by --exclude none"
    named, default = excluded_sets(["x.jsonl"], ["docmath"])
    assert (named.source, named.benchmark, named.is_required) == ("x.jsonl", None, True)
    assert default.fault is None


def test_what_was_turned_off_is_in_the_report(endpoint, write, tmp_path):
    source = f"docmath={write('q.jsonl', [question('right')])}"
    run(config(endpoint, source, exclude=excluded_sets(["none"], [source])), tmp_path / "e")
    report, text = report_of(tmp_path / "e")
    assert report["possibly_trained_on"] == ["docmath"]
    assert "Tongyi-Zhiwen/DocQA-RL-1.6K**: turned off by --exclude none" in text


def test_a_report_without_any_comparison_says_so(endpoint, source, tmp_path):
    run(config(endpoint, source), tmp_path / "e")
    assert "not compared with any training set" in report_of(tmp_path / "e")[1]


# ---- controls


def test_controls_ask_without_the_document_and_with_another_one_and_stand_beside_the_accuracy(
    endpoint, write, tmp_path
):
    endpoint.reads = True
    rows = [question("right"), question("right", id="right2", context="Quite another text.")]
    own = config(endpoint, write("q.jsonl", rows), control=("no_document", "other_document"))
    summary = run(own, tmp_path / "e")
    assert summary.benchmarks.keys() == {"musique"}
    assert summary.benchmarks["musique"].accuracy.mean == 0.5
    assert summary.macro.mean == 0.5
    assert summary.under["no_document"]["musique"].accuracy.mean == 0.0
    assert summary.under["other_document"]["musique"].accuracy.mean == 0.5  # each is shown that of the other one
    assert endpoint.requests["answer"] == 2 * 2 * 3
    assert "| MuSiQue | 50.0 | 0.0 to 100.0 | 0.0 | 0.0 to 0.0 | 50.0 | 0.0 to 100.0 |" in report_of(tmp_path / "e")[1]
    results = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    assert {row["benchmark"] for row in results} == {"musique"}
    assert run(own, tmp_path / "e") == summary
    assert endpoint.requests["answer"] == 12


def test_a_control_added_later_asks_only_its_own_questions(endpoint, write, tmp_path):
    source = write("q.jsonl", [question(name) for name in ANSWERS])
    run(config(endpoint, source), tmp_path / "e")
    before = endpoint.requests["answer"]
    summary = run(config(endpoint, source, control=("no_document",)), tmp_path / "e")
    assert endpoint.requests["answer"] == before + 6
    assert summary.benchmarks["musique"].num_items == 3


def test_a_question_without_another_document_is_left_out_of_that_control(endpoint, source, tmp_path):
    summary = run(config(endpoint, source, control=("other_document",)), tmp_path / "e")  # all share one document
    assert summary.under == {"other_document": {}}
    assert "| MuSiQue | 66.7 |" in report_of(tmp_path / "e")[1]


# ---- the models of a run


def stages(endpoint, source, **values):
    """Two models behind the endpoint, as configurations of one evaluation."""
    found = []
    for number, label in enumerate(["after sft", "after phase-1"]):
        own = config(endpoint, source, **values)
        generator = own.generator.model_copy(update={"model": label})
        stage = StageModel(label=label, path=f"models/{label}", folder=f"{number}-model")
        found.append((stage, own.model_copy(update={"generator": generator})))
    return found


def test_the_models_of_a_run_stand_in_one_table_beside_a_report_of_each(endpoint, write, tmp_path, capsys):
    rows = [question("right"), question("wrong", data_source="hotpotqa")]
    trained = write("t.jsonl", [question("judged")])
    source = write("q.jsonl", [*rows, question("judged")])
    given = stages(endpoint, source, exclude=excluded_sets([trained], [source]), control=("no_document",))
    found = evaluate_stages(given, run="demo", out=tmp_path / "e", progress=Progress(quiet=True))
    assert list(found) == ["after sft", "after phase-1"]
    report, text = report_of(tmp_path / "e")
    assert text == capsys.readouterr().out
    assert "| model | MuSiQue | HotpotQA | average |" in text
    assert text.count("| 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) | 50.0 (50.0 to 50.0) |") == 2
    assert "| after phase-1 | 50.0 | 50.0 |" in text  # under the control
    assert [model["label"] for model in report["models"]] == ["after sft", "after phase-1"]
    assert report["models"][0]["average"]["mean"] == 0.5
    assert (tmp_path / "e" / "1-model" / "report.md").is_file()
    before = dict(endpoint.requests)
    evaluate_stages(given, run="demo", out=tmp_path / "e", progress=Progress(quiet=True))
    assert endpoint.requests == before


def test_the_folder_of_something_else_is_not_taken_for_that_of_a_run(endpoint, source, tmp_path):
    run(config(endpoint, source), tmp_path / "e")
    with pytest.raises(UserError, match="holds something else than the evaluation of a run"):
        evaluate_stages(stages(endpoint, source), run="demo", out=tmp_path / "e", progress=Progress(quiet=True))
