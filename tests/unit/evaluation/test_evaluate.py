"""Whole evaluations and distillations against a hand-written endpoint that answers, judges and counts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curriculum.errors import RunFailed, UserError
from evaluation.behaviour_judge import INSTRUCTION
from evaluation.config import DistillConfig, EndpointGenerator, EvaluationConfig, SamplingConfig
from evaluation.distill import distill
from evaluation.evaluate import evaluate
from evaluation.progress import Progress
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
    """Counts its requests by kind; a question gets the answer whose name it contains."""

    def __init__(self):
        self.requests = {"answer": 0, "judge": 0, "count": 0}
        self.refused = set()
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
