"""Difficulty that is measured: of the base model before the first phase, or of the policy at every transition."""

import json

import pytest

from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig, RetrospectiveConfig
from curriculum.coordinator import Coordinator
from curriculum.errors import UserError
from curriculum.retrospective import MAX_POOL_SIZE
from curriculum.task import TaskEntry, TaskOutcome


def start(counts, difficulty, *, seed=0, max_share=0.5):
    phases = tuple(
        PhaseConfig(name=f"phase-{index}", max_prompt_tokens=100 * (index + 1), end=FixedSteps(steps=1))
        for index in range(len(counts))
    )
    replay = RetrospectiveConfig(selection="difficulty", difficulty=difficulty, max_share=max_share)
    tasks = [
        TaskEntry(task_id=f"t{phase}-{i}", phase=phase, prompt_tokens=9, data_source="x")
        for phase, count in enumerate(counts)
        for i in range(count)
    ]
    return Coordinator(tasks=tasks, config=CurriculumConfig(phases=phases, retrospective=replay), seed=seed)


def step(coordinator, number, num_tasks, accuracy_of=lambda _: 0.5):
    coordinator.open_batch(num_tasks)
    leases = coordinator.lease_up_to("holder", num_tasks)
    coordinator.report(
        [
            TaskOutcome(
                lease_id=lease.lease_id, task_id=lease.task_id, accuracies=(accuracy_of(lease.task_id),), num_samples=1
            )
            for lease in leases
        ]
    )
    coordinator.finish_step(number, num_trained_groups=1)
    return [lease.task_id for lease in leases if lease.replayed]


def to_measure(coordinator):
    return coordinator.phase_state().to_measure


def test_by_the_latest_visit_nothing_is_measured():
    coordinator = start((2, 4), "latest")
    assert to_measure(coordinator) == ()
    step(coordinator, 0, 2)
    assert to_measure(coordinator) == ()


def test_before_the_run_the_base_model_is_asked_about_the_tasks_of_all_phases_but_the_last():
    coordinator = start((2, 1, 3), "base")
    assert to_measure(coordinator) == ("t0-0", "t0-1", "t1-0")
    coordinator.record_measured(["t0-0", "t0-1"], {"t0-0": 0.0, "t0-1": 0.875})
    assert to_measure(coordinator) == ("t1-0",)
    coordinator.record_measured(["t1-0"], {})
    assert to_measure(coordinator) == ()
    step(coordinator, 0, 2)
    assert to_measure(coordinator) == ()


def test_weights_of_the_base_model_stay_while_solved_tasks_leave_by_their_latest_visit():
    coordinator = start((3, 99), "base")
    coordinator.record_measured(to_measure(coordinator), {"t0-0": 0.0, "t0-1": 7 / 8, "t0-2": 0.0})
    step(coordinator, 0, 3, {"t0-0": 7 / 8, "t0-1": 0.0, "t0-2": 1.0}.__getitem__)
    # weights 8 and 1 by the base model, whatever the policy says now; t0-2 is solved
    saved, firsts = json.dumps(coordinator.state_dict()), []
    for seed in range(300):
        again = start((3, 99), "base", seed=seed)
        again.load_state_dict({**json.loads(saved), "fingerprint": again.state_dict()["fingerprint"]})
        firsts += step(again, 1, 2)
    assert set(firsts) == {"t0-0", "t0-1"}
    assert firsts.count("t0-0") / 300 == pytest.approx(8 / 9, abs=0.06)


def test_at_a_transition_every_earlier_task_is_measured_the_hardest_first():
    coordinator = start((4, 2, 2), "transition")
    assert to_measure(coordinator) == ()
    known = {"t0-0": 1.0, "t0-1": 0.25, "t0-2": 0.0}
    coordinator.open_batch(3)
    leases = coordinator.lease_up_to("holder", 3)
    coordinator.report(
        [
            TaskOutcome(
                lease_id=lease.lease_id,
                task_id=lease.task_id,
                accuracies=(known.get(lease.task_id, 0.5),),
                num_samples=1,
            )
            for lease in leases
        ]
    )
    coordinator.finish_step(0, num_trained_groups=1)
    seen = {lease.task_id: known.get(lease.task_id, 0.5) for lease in leases}
    order = to_measure(coordinator)
    assert sorted(order) == ["t0-0", "t0-1", "t0-2", "t0-3"]
    assert [seen.get(task_id, 0.0) for task_id in order] == sorted(seen.get(task_id, 0.0) for task_id in order)
    step(coordinator, 1, 2)
    assert sorted(to_measure(coordinator)) == ["t0-0", "t0-1", "t0-2", "t0-3", "t1-0", "t1-1"]


def test_what_is_measured_at_a_transition_is_the_latest_visit():
    coordinator = start((3, 9), "transition")
    step(coordinator, 0, 3, {"t0-0": 0.0, "t0-1": 0.5, "t0-2": 1.0}.__getitem__)
    coordinator.record_measured(to_measure(coordinator), {"t0-0": 1.0, "t0-1": 1.0, "t0-2": 0.875})
    assert step(coordinator, 1, 4) == ["t0-2"], "the only one that is hard now: it was solved before"


def test_at_most_the_hardest_thousand_are_measured():
    coordinator = start((MAX_POOL_SIZE + 5, 1), "transition")
    step(coordinator, 0, 8, lambda _: 1.0)
    assert len(to_measure(coordinator)) == MAX_POOL_SIZE


def test_a_resume_in_the_middle_goes_on_with_what_is_left_to_measure():
    coordinator = start((3, 9), "transition")
    step(coordinator, 0, 3)
    first, *others = to_measure(coordinator)
    coordinator.record_measured([first], {first: 0.0})
    again = start((3, 9), "transition")
    again.load_state_dict(json.loads(json.dumps(coordinator.state_dict())))
    assert to_measure(again) == tuple(others)
    for both in (coordinator, again):
        both.record_measured(others, dict.fromkeys(others, 0.25))
    assert again.state_dict() == coordinator.state_dict()
    assert step(again, 1, 4) == step(coordinator, 1, 4)


def test_a_run_that_did_not_measure_its_base_model_cannot_go_on_with_its_weights():
    state = start((2, 2), "latest").state_dict()
    with pytest.raises(UserError, match=r"difficulty=base: the base model was not measured when this run started"):
        start((2, 2), "base").load_state_dict(state)


def test_a_run_may_go_on_with_another_difficulty_or_selection():
    coordinator = start((2, 2, 2), "transition")
    step(coordinator, 0, 2)
    again = start((2, 2, 2), "latest")
    again.load_state_dict(coordinator.state_dict())
    assert to_measure(again) == ()
    back = start((2, 2, 2), "transition")
    back.load_state_dict(again.state_dict())
    step(back, 1, 2)
    assert len(to_measure(back)) == 4


def test_a_difficulty_that_is_measured_needs_a_selection_with_weights():
    with pytest.raises(ValueError, match="difficulty=transition measures weights, and selection=zero_accuracy draws"):
        RetrospectiveConfig(difficulty="transition")
