"""A run with broadcast weights and a judge behind an endpoint loses one of its two engines, then its judge: it goes on,
the group of the engines is formed anew, the circuit opens and closes, and no reward changes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 40, 2  # 24 as in conftest.py, 40 to see the judge come back


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

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # all questions of a step come at once

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.port = self._server.server_port

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def judged_by(port):
    """`reward.judge` of the recipe: an endpoint at a port of this machine, tried again after half its timeout."""
    return {"type": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "model": "stand-in", "timeout_s": 5}


def circuit_events(run):
    return [event for event in run.lines("events.jsonl") if event["event"].startswith("judge_circuit_")]


@pytest.fixture(scope="module")
def run(workshop):
    short, long = workshop.overrides["curriculum.phases"]
    run, judge = workshop.new_run("outages"), Judge()
    command = workshop.train(
        run,
        rollout__sync__transport="collective",
        rollout__num_actors=2,
        reward__judge=judged_by(judge.port),
        curriculum__phases=[
            {**short, "end": {"type": "steps", "steps": NUM_SHORT_STEPS}},
            {**long, "end": {"type": "steps", "steps": NUM_LONG_STEPS}},
        ],
    )
    try:
        run.wait_for_steps(command, NUM_SFT_STEPS + 1)
        run.kill("rollout-1")
        command.wait_for(lambda: len(run.events("fault")) >= 2, "restart of the engine")
        run.wait_for_steps(command, len(run.metrics) + 1)
        judge.stop()
        command.wait_for(lambda: circuit_events(run), "open circuit")
        judge = Judge(judge.port)
        run.finish(command)
    finally:
        judge.stop()
    return run


@pytest.fixture(scope="module")
def steps(run):
    return run.metrics[NUM_SFT_STEPS:]


def test_the_run_ends_well_and_leaves_no_process_behind(run):
    assert run.exit_statuses == [0], run.output[-4000:]
    assert run.survivors == [[]]
    assert run.summary["steps"] == NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS


def test_both_engines_receive_every_update_also_after_one_of_them_was_killed(run):
    syncs = run.events("sync")
    assert [event["num_engines"] for event in syncs] == [2] * len(syncs)
    faults = [(event["actor"], event["action"]) for event in run.events("fault")]
    assert faults == [("rollout-1", "restarting"), ("rollout-1", "back")]


def test_every_batch_is_sampled_from_the_weights_that_the_learner_holds(steps):
    gaps = [line["learner/rollout_logprob_gap_max"] for line in steps if line["rollout/groups_trained"]]
    assert len(gaps) >= 10
    assert max(gaps[:10]) < 1e-4, "the engine died in the second; much later rounding alone comes near this"


def test_the_outage_of_the_judge_shows_up_as_unknown_counts(steps):
    unknown = [step["reward/unknown"] for step in steps]
    assert len(unknown) == NUM_SHORT_STEPS + NUM_LONG_STEPS
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
    paths = sorted((run.folder / "trajectories").glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
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


def test_a_judge_that_is_away_at_the_start_stops_the_run_with_one_line(workshop):
    gone, run = Judge(), workshop.new_run("no-judge")
    gone.stop()
    run.finish(workshop.train(run, reward__judge=judged_by(gone.port), sft__epochs=0, data__sft=None))
    assert run.exit_statuses == [2], run.output[-4000:]
    errors = [line for line in run.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "the judge gave no verdict" in errors[0]
    assert not run.metrics
