"""What is written of a standstill: each part by itself, so that one that fails leaves the others."""

from __future__ import annotations

from cluster.processes.diagnosis import Diagnosis
from curriculum.heartbeat import Heartbeat


class Actor:
    name = "learner-0"
    beat = Heartbeat(doing="accumulate", still_s=3.0, pid=7, children=(8,), node_id="elsewhere")

    def complaint(self, now):
        return "learner-0: no answer in accumulate for 600 s"


def test_a_diagnosis_holds_heartbeats_and_the_facts_of_the_loop_and_grows(tmp_path):
    diagnosis = Diagnosis(tmp_path / "diagnosis.txt")
    diagnosis.facts = lambda: {"groups in flight": {"rollout-0": 3}}
    for _ in range(2):
        diagnosis.write("learner-0 stands still", [Actor()], ray_answers=False)
    text = diagnosis.path.read_text()
    assert text.count("learner-0 stands still") == 2
    assert "doing='accumulate'" in text
    assert "no answer in accumulate for 600 s" in text
    assert '"rollout-0": 3' in text


def test_facts_that_cannot_be_had_are_told_as_their_error(tmp_path):
    diagnosis = Diagnosis(tmp_path / "diagnosis.txt")

    def broken():
        raise RuntimeError("no rollout actor is left")

    diagnosis.facts = broken
    diagnosis.write("nothing moves", [], ray_answers=False)
    assert "RuntimeError: no rollout actor is left" in diagnosis.path.read_text()
