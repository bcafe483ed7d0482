"""A judge that goes away in the middle of a run and comes back: unknowns and circuit events, and no reward changes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NUM_STEPS = 10
OVERRIDES = (
    "cluster.address=local",
    "tracking.wandb=false",
    "data.train={type: generated, items_per_length: 200, lengths: [[96, 192]]}",
    "data.sft={type: generated, items_per_length: 1600, lengths: [[48, 96]]}",
    "data.evaluation=null",
    f"curriculum.phases=[{{name: short, max_prompt_tokens: 300, end: {{type: steps, steps: {NUM_STEPS}}}}}]",
    "curriculum.max_sampling_rounds=1",
    "groups_per_batch=4",
    "rollout.group_size=4",
    "checkpoint.every_steps=100",
)


class Judge:
    """An OpenAI-compatible endpoint on loopback: yes to a single word that begins with the same letter as the truth."""

    def __init__(self, port=0):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                lines = body["messages"][1]["content"].split("\n")
                answer, truth = lines[1].removeprefix("Answer 1: "), lines[2].removeprefix("Answer 2: ")
                is_yes = answer.isalnum() and answer[0] == truth[0]
                message = {"role": "assistant", "content": "[[YES]]" if is_yes else "[[NO]]"}
                reply = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.port = self._server.server_port

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def records(path):
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def rl_steps(run):
    return [record for record in records(run / "metrics.jsonl") if record["stage"] == "short"]


def circuit_events(run):
    return [event for event in records(run / "events.jsonl") if event["event"].startswith("judge_circuit_")]


def wait_until(condition, process, log, seconds=180.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-4_000:]
        assert time.monotonic() < deadline, log.read_text()[-4_000:]
        time.sleep(0.05)


def train(run, log, port, *overrides):
    """A training process whose judge is at a port of this machine."""
    endpoint = f"{{type: openai, base_url: 'http://127.0.0.1:{port}/v1', model: stand-in, timeout_s: 5}}"
    command = [sys.executable, "-m", "cluster.cli", "train", "recipes/local.yaml", "--run-dir", str(run), *OVERRIDES]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("w") as output:
        return subprocess.Popen(
            [*command, f"reward.judge={endpoint}", *overrides],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
            return
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run whose judge was away for some steps."""
    folder = tmp_path_factory.mktemp("outage")
    run, log = folder / "run", folder / "log"
    judge = Judge()
    process = train(run, log, judge.port)
    try:
        wait_until(lambda: len(rl_steps(run)) >= 2, process, log)
        judge.stop()
        wait_until(lambda: circuit_events(run), process, log)
        judge = Judge(judge.port)
        assert process.wait(120) == 0, log.read_text()[-4_000:]
    finally:
        end(process)
        judge.stop()
    return run


def test_the_outage_shows_up_as_unknown_counts(run):
    unknown = [step["reward/unknown"] for step in rl_steps(run)]
    assert len(unknown) == NUM_STEPS
    assert unknown[0] == 0
    assert sum(unknown) > 0
    assert unknown[-1] == 0


def test_the_circuit_opens_and_closes_again(run):
    events = circuit_events(run)
    assert events[0]["event"] == "judge_circuit_opened"
    assert events[0]["num_failures"] >= 3
    assert "stand-in" in events[0]["judge"]
    assert events[-1]["event"] == "judge_circuit_closed"


def test_no_reward_changes_value(run):
    rows = [row for path in sorted((run / "trajectories").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    verdicts = {(row["rule"], row["judge"]) for row in rows}
    assert {(1.0, None), (0.0, "yes"), (0.0, "no"), (0.0, "unknown")} <= verdicts
    for row in rows:
        if row["rule"] == 1.0:
            assert (row["accuracy"], row["reward"], row["judge"]) == (1.0, 1.0, None)
        elif row["judge"] == "unknown":
            assert (row["accuracy"], row["reward"], row["advantage"]) == (None, None, None)
        elif row["judge"] is not None:
            assert row["accuracy"] == row["reward"] == float(row["judge"] == "yes")
        else:
            assert row["accuracy"] == row["reward"] == 0.0
            assert row["answer"] is None or "imitates" in row["reason"]


def test_a_judge_that_is_away_at_the_start_stops_the_run_with_one_line(tmp_path):
    gone = Judge()
    gone.stop()
    log = tmp_path / "log"
    process = train(tmp_path / "run", log, gone.port, "sft.epochs=0", "data.sft=null")
    try:
        assert process.wait(120) == 2, log.read_text()[-4_000:]
    finally:
        end(process)
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "the judge gave no verdict" in errors[0]
    assert not rl_steps(tmp_path / "run")
