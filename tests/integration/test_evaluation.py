"""`qwenlong eval` and `qwenlong distill` with real engines: in this process, behind an endpoint, in Ray replicas."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.recipe.load import dump_recipe, load_recipe
from curriculum.synthetic import generate_items

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "recipes" / "assets" / "local_base"
REAL_DOCUMENTS = ROOT.parent / "shared" / "data" / "eval.parquet"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
ENVIRONMENT.pop("RAY_ADDRESS", None)
BIN = Path(sys.executable).parent
LENGTHS = ("--max-items", 3, "--samples", 2, "--max-input", 3000, "--max-output", 32)


def command(*arguments: object) -> list[str]:
    return [str(BIN / "qwenlong"), *map(str, arguments)]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=ENVIRONMENT | environment, cwd=ROOT, capture_output=True, text=True, timeout=480
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generated questions about documents of about 100 words."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    items = generate_items(num_items=6, min_words=80, max_words=120, seed=1, prefix="eval")
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


# ---- one engine in the process of the command


@pytest.fixture(scope="module")
def in_process(questions, tmp_path_factory):
    """Arguments, result and folder of an evaluation of the questions and of real documents, where they are there."""
    out = tmp_path_factory.mktemp("in-process") / "evaluation"
    documents = [REAL_DOCUMENTS] if REAL_DOCUMENTS.is_file() else []
    arguments = ("eval", MODEL, questions, *documents, *LENGTHS, "--out", out)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return arguments, done, out


@pytest.mark.skipif(not REAL_DOCUMENTS.is_file(), reason="the real documents are not beside the checkout")
def test_real_documents_are_evaluated_by_an_engine_in_the_process(in_process):
    _, done, out = in_process
    answers, results = lines(out / "answers.jsonl"), lines(out / "results.jsonl")
    report = json.loads((out / "report.json").read_text())
    num_items = sum(row["num_items"] for row in report["benchmarks"].values())
    assert {"docmath", "hotpotqa", "musique", "narrativeqa", "qasper", "2wikimqa"} <= set(report["benchmarks"])
    assert len(answers) == len(results) == 2 * num_items
    assert all(0 < answer["prompt_tokens"] <= 3000 for answer in answers)
    assert any(answer["document_cut"] for answer in answers)
    assert len({answer["seed"] for answer in answers}) == len(answers)
    assert all(set(row["pass_at"]) == {"1", "2"} for row in report["benchmarks"].values())
    assert "L1-32B-DAPO" in done.stdout


def test_no_engine_is_started_for_answers_that_are_there(in_process, tmp_path):
    arguments, _, out = in_process
    answers = lines(out / "answers.jsonl")
    (tmp_path / "vllm.py").write_text("raise RuntimeError('an engine is started')")
    again = run(*arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert again.returncode == 0, again.stderr[-3000:]
    assert lines(out / "answers.jsonl") == answers


def test_a_folder_of_answers_at_another_temperature_is_refused(in_process):
    arguments, _, _ = in_process
    other = run(*arguments, "--temperature", 1.0)
    assert other.returncode == 2
    assert "temperature=0.7 there, 1.0 now" in other.stderr


def test_docmath_is_marked_where_the_published_training_set_cannot_be_reached(questions, tmp_path):
    done = run("eval", MODEL, f"docmath={questions}", *LENGTHS, "--max-items", 1, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not compared with Tongyi-Zhiwen/DocQA-RL-1.6K: " in done.stderr
    assert "| DocMath † | 1 |" in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["possibly_trained_on"] == ["docmath"]


# ---- the models of a run


@pytest.fixture(scope="module")
def run_folder(questions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the models of three stages, which are all the same, and held-out questions."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    (folder / "heldout").mkdir(parents=True)
    shutil.copy(questions, folder / "heldout" / "questions.jsonl")
    for stage in ("sft", "phase-1", "phase-2"):
        shutil.copytree(MODEL, folder / "models" / stage)
    overrides = [f"model.path={MODEL}", "data.train.items_per_length=20", "data.sft.items_per_length=20"]
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(ROOT / "recipes" / "local.yaml", overrides)))
    (folder / "events.jsonl").write_text("")
    return folder


def test_a_run_folder_gives_one_table_of_all_its_models_and_no_engine_starts_for_what_is_there(run_folder, tmp_path):
    out = tmp_path / "out"
    arguments = ("eval", run_folder, "--judge", "none", "--control", "no_document", "--max-items", 2, "--out", out)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert [model["label"] for model in report["models"]] == ["base", "after sft", "after phase-1", "after phase-2"]
    assert {"local_hop1", "local_hop2"} >= set(report["models"][0]["accuracy"])
    assert [comparison["name"] for comparison in report["comparisons"]] == ["data.train of demo", "data.sft of demo"]
    assert report["possibly_trained_on"] == []
    texts = [{row["item_id"]: row["text"] for row in lines(folder / "answers.jsonl")} for folder in out.glob("*-*")]
    assert len(texts) == 4
    assert all(text == texts[0] for text in texts), "the same weights give the same answers"
    (tmp_path / "vllm.py").write_text("raise RuntimeError('an engine is started')")
    again = run(*arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout == done.stdout


# ---- Ray


def test_ray_replicas_answer_like_one_engine(in_process, questions, tmp_path):
    spread = run("eval", MODEL, questions, *LENGTHS, "--replicas", 2, "--out", tmp_path / "ray")
    assert spread.returncode == 0, spread.stderr[-3000:]
    _, _, out = in_process
    ours, alone = (
        {(row["item_id"], row["sample"]): row["text"] for row in lines(folder / "answers.jsonl")}
        for folder in (tmp_path / "ray", out)
    )
    assert len(ours) >= 6
    assert ours.items() <= alone.items()


# ---- an endpoint


class Gate:
    """Stands in front of the endpoint: notes the seed of every request and holds one of them back on demand."""

    def __init__(self, backend_port: int) -> None:
        self.answered: list[int] = []
        self.asked: list[int] = []
        self.hold_request: int | None = None
        self.held = threading.Event()
        self.release = threading.Event()
        self.backend_port = backend_port
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seed = json.loads(body)["seed"]
                gate.asked.append(seed)
                if len(gate.asked) == gate.hold_request:
                    gate.held.set()
                    gate.release.wait(300)
                    self.close_connection = True
                    return
                self._pass_on(body)
                gate.answered.append(seed)

            def _pass_on(self, body: bytes | None) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", gate.backend_port, timeout=300)
                connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                content = reply.read()
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.getheader("Content-Type") or "text/plain")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def free_port() -> int:
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return attempt.getsockname()[1]


@pytest.fixture(scope="module")
def endpoint_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of vLLM's server with the tiny model; what `vllm serve` runs, whose command needs the package `vllm`."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--host", "127.0.0.1",
             "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
             "--kv-cache-memory-bytes", str(128 << 20), "--no-enable-chunked-prefill",
             "--max-num-batched-tokens", "4096"],
            env=ENVIRONMENT, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_healthy(port, server, log)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_healthy(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server did not come up: {log.read_text()[-3000:]}")


@pytest.fixture
def gate(endpoint_port: int) -> Iterator[Gate]:
    gate = Gate(endpoint_port)
    yield gate
    gate.release.set()
    gate.server.shutdown()
    gate.server.server_close()


def test_a_killed_evaluation_goes_on_without_asking_anything_twice(gate, questions, tmp_path):
    out = tmp_path / "evaluation"
    options = ("--samples", 2, "--max-input", 1500, "--max-output", 32, "--concurrency", 1, "--out", out)
    arguments = ("eval", gate.url, questions, *options)
    gate.hold_request = 6
    first = subprocess.Popen(command(*arguments), env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert gate.held.wait(300), "the sixth request never came"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    gate.release.set()
    before, stored = list(gate.answered), lines(out / "answers.jsonl")
    assert len(stored) == len(before) == 5
    assert not (out / "report.json").exists()

    gate.hold_request = None
    second = run(*arguments)
    assert second.returncode == 0, second.stderr[-3000:]
    answers = lines(out / "answers.jsonl")
    assert answers[:5] == stored
    assert Counter(gate.answered).most_common(1)[0][1] == 1  # nothing that was answered was asked again
    assert sorted(gate.answered) == sorted(answer["seed"] for answer in answers)
    assert len(answers) == len({(answer["item_id"], answer["sample"]) for answer in answers}) == 12
    assert json.loads((out / "report.json").read_text())["reasoning"]["all"]["mean_response_tokens"] > 0


def test_an_endpoint_that_goes_away_ends_the_command_with_status_1_and_it_goes_on_later(gate, questions, tmp_path):
    out = tmp_path / "evaluation"
    options = ("--samples", 4, "--max-input", 1500, "--max-output", 8, "--out", out)
    backend, gate.backend_port = gate.backend_port, free_port()
    tokenizer = ("--model-name", MODEL, "--tokenizer", MODEL)
    down = run("eval", gate.url, questions, *options, *tokenizer)
    assert down.returncode == 1, down.stderr[-3000:]
    assert "run the same command again" in down.stderr
    gate.backend_port = backend
    later = run("eval", gate.url, questions, *options, *tokenizer)
    assert later.returncode == 0, later.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert all(row["num_failed"] == 0 for row in report["benchmarks"].values())


def test_a_teacher_behind_an_endpoint_is_distilled_and_every_answer_is_accounted_for(gate, questions, tmp_path):
    out = tmp_path / "distilled"
    done = run("distill", gate.url, questions, "--samples", 2, "--max-input", 1500, "--max-output", 32, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads((out / "data_card.json").read_text())
    assert card["num_answers"] == 12 == card["num_kept"] + sum(card["rejects"].values())
    assert (out / "sft.parquet").is_file()
