"""The budget of restarts: what is counted, and how it ends."""

from __future__ import annotations

import pytest

from cluster.run.recovery import CoordinatorLost, FaultRecord, LearnerLost, RestartBudget, RestartFromCheckpoint
from curriculum.errors import RunFailed


class Told:
    def __init__(self, tmp_path, max_restarts) -> None:
        self.events, self.lines = [], []
        self.faults = FaultRecord(lambda **fields: self.events.append(fields), self.lines.append)
        self.diagnosis = tmp_path / "diagnosis.txt"
        self.budget = RestartBudget(max_restarts, self.faults, diagnosis=self.diagnosis)


@pytest.fixture
def told(tmp_path):
    return lambda max_restarts: Told(tmp_path, max_restarts)


def test_every_restart_is_told_with_its_cause_and_what_is_left(told):
    t = told(2)
    t.budget.spend(LearnerLost("learner-1 died in accumulate"), step=5)
    t.budget.spend(CoordinatorLost(), step=7)
    assert [(e["part"], e["from_step"], e["restarts_left"]) for e in t.events] == [
        ("learner", 5, 1), ("coordinator", 7, 0),
    ]  # fmt: skip
    assert t.lines[0].startswith("fault: part=learner, error=learner-1 died in accumulate, action=restarting the run")


def test_a_budget_that_is_used_up_ends_the_run_with_all_faults_by_actor(told):
    t = told(1)
    t.faults.add(actor="rollout-0", error="ActorUnavailableError", action="restarting")
    t.faults.add(actor="rollout-0", action="back")
    t.budget.spend(LearnerLost("learner-0 died in update"), step=5)
    with pytest.raises(RunFailed) as ended:
        t.budget.spend(LearnerLost("learner-0 died in update"), step=10)
    assert str(ended.value) == (
        "learner-0 died in update; it was launched again 1 times (cluster.max_run_restarts=1); faults of this command: "
        "rollout-0 1, learner 1; read the logs in logs/, remove the cause, then go on with --resume"
    )
    assert not isinstance(ended.value, RestartFromCheckpoint)


def test_a_run_that_does_not_get_on_between_its_restarts_says_so_and_names_the_diagnosis(told):
    t = told(1)
    t.diagnosis.write_text("stacks")
    t.budget.spend(LearnerLost("learner-0: no answer"), step=5)
    with pytest.raises(RunFailed, match=r"1 times without a new checkpoint in between .*read .*diagnosis.txt and"):
        t.budget.spend(LearnerLost("learner-0: no answer"), step=5)


def test_without_a_budget_the_first_loss_ends_the_run(told):
    with pytest.raises(RunFailed, match=r"the coordinator died; it was launched again 0 times"):
        told(0).budget.spend(CoordinatorLost(), step=3)
