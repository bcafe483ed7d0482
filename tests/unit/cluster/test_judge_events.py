"""The circuit breakers of the judges reach events.jsonl, after each batch and after each evaluation."""

import json

from reward.circuit import CircuitState, JudgeEvent


def event(state, reason="HTTP 500"):
    return JudgeEvent(judge="stand-in", state=state, unix_s=1.5, num_failures=3, num_refused=7, reason=reason)


def journalled(bench):
    lines = (bench.folder.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def drain_from(events):
    async def judge_events():
        drained = list(events)
        events.clear()
        return drained

    return judge_events


def test_every_change_of_a_circuit_becomes_an_event_of_its_own_kind_and_once(bench):
    run = bench(accuracies=lambda lease: [0.0, 1.0])
    run.rollouts.judge_events = drain_from([event(state) for state in CircuitState])
    run.run()
    circuit = [line for line in journalled(run) if line["event"].startswith("judge_circuit_")]
    kinds = [line["event"].removeprefix("judge_circuit_") for line in circuit]
    assert kinds == ["closed", "opened", "half_opened"]
    del circuit[1]["time"]
    assert circuit[1] == {
        "event": "judge_circuit_opened",
        "judge": "stand-in",
        "unix_s": 1.5,
        "num_failures": 3,
        "num_refused": 7,
        "reason": "HTTP 500",
    }


def test_events_of_an_evaluation_come_before_its_result(bench, task):
    run = bench(accuracies=lambda lease: [0.0, 1.0], heldout={"short": [task("h", 0)]})
    run.rollouts.judge_events = drain_from([event(CircuitState.OPEN)])
    run.run()
    kinds = [line["event"] for line in journalled(run)]
    assert kinds.index("judge_circuit_opened") < kinds.index("evaluation")
