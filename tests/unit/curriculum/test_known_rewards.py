"""A group speaks for its task, and for its step, if at least half of its rewards are known."""

import pytest

from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig, Plateau, RetrospectiveConfig
from curriculum.coordinator import Coordinator
from curriculum.task import TaskEntry, TaskOutcome


def outcome(*accuracies, num_samples=8, lease_id=0, task_id="t0-0"):
    return TaskOutcome(lease_id=lease_id, task_id=task_id, accuracies=accuracies, num_samples=num_samples)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param((0.0,), None, id="1 wrong and 7 unknown are not hopeless"),
        pytest.param((1.0,), None, id="1 right and 7 unknown are not solved"),
        pytest.param((1.0, 1.0, 1.0), None, id="3 of 8 are too few"),
        pytest.param((1.0, 1.0, 0.0, 0.0), 0.5, id="4 of 8 are enough"),
        pytest.param((), None, id="none of 8"),
    ],
)
def test_the_accuracy_of_a_group_needs_half_of_its_rewards(known, expected):
    assert outcome(*known).mean_accuracy == expected


def test_a_group_that_was_lost_has_no_accuracy():
    assert outcome(num_samples=0).mean_accuracy is None


def test_more_accuracies_than_samples_are_refused():
    with pytest.raises(ValueError, match="t0-0: 2 accuracies of 1 samples"):
        outcome(1.0, 0.0, num_samples=1)


def start(make_tasks, *counts, end=None, selection="zero_accuracy"):
    ends = [end or FixedSteps(steps=1)] * len(counts)
    phases = tuple(
        PhaseConfig(name=f"phase-{index}", max_prompt_tokens=100 * (index + 1), end=rule)
        for index, rule in enumerate(ends)
    )
    replay = RetrospectiveConfig(selection=selection, max_share=0.5)
    tasks = [TaskEntry.of(task) for task in make_tasks(*counts)]
    return Coordinator(tasks=tasks, config=CurriculumConfig(phases=phases, retrospective=replay), seed=0)


def step(coordinator, number, known_of, *, num_tasks):
    """One step; `known_of(index)` are the known accuracies of the 8 samples of its group."""
    coordinator.open_batch(num_tasks)
    leases = coordinator.lease_up_to("holder", num_tasks)
    coordinator.report(
        [
            outcome(*known_of(index), lease_id=lease.lease_id, task_id=lease.task_id)
            for index, lease in enumerate(leases)
        ]
    )
    return leases, coordinator.finish_step(number, num_trained_groups=1)


@pytest.mark.parametrize("selection", ["zero_accuracy", "difficulty"])
def test_one_wrong_answer_among_seven_unknown_ones_does_not_make_a_task_hopeless(make_tasks, selection):
    coordinator = start(make_tasks, 4, 4, selection=selection)
    known = [(0.0,), (0.0,) * 8, (0.0,) * 3, (1.0,) * 8]
    leases, report = step(coordinator, 0, known.__getitem__, num_tasks=4)
    assert report.transition.pool_size == 1
    leases_of_next, _ = step(coordinator, 1, lambda _: (0.0,) * 8, num_tasks=4)
    assert [lease.task_id for lease in leases_of_next if lease.replayed] == [leases[1].task_id]


@pytest.mark.parametrize("selection", ["zero_accuracy", "difficulty"])
def test_one_right_answer_among_seven_unknown_ones_does_not_make_a_task_solved(make_tasks, selection):
    coordinator = start(make_tasks, 1, 9, end=FixedSteps(steps=2), selection=selection)
    for number in range(2):
        step(coordinator, number, lambda _: (0.0,) * 8, num_tasks=1)
    _, report = step(coordinator, 2, lambda _: (1.0,), num_tasks=2)
    assert (report.pool_size, report.replayed_accuracy, report.fresh_accuracy) == (1, None, None)


def test_a_step_speaks_for_the_policy_if_half_of_its_fresh_groups_are_scored(make_tasks):
    # ten scored steps, one that is stale with 2 of 4 groups scored, one with 1 of 4 that does not count, a stale one
    coordinator = start(make_tasks, 40, end=Plateau(max_steps=99, patience=2))
    for number in range(10):
        step(coordinator, number, lambda _: (1.0, 0.0) * 4, num_tasks=4)
    _, half = step(coordinator, 10, lambda index: (1.0, 0.0) * 4 if index < 2 else (1.0,), num_tasks=4)
    _, quarter = step(coordinator, 11, lambda index: (1.0, 0.0) * 4 if index < 1 else (1.0,), num_tasks=4)
    assert (half.transition, quarter.transition, quarter.fresh_accuracy) == (None, None, 0.5)
    _, last = step(coordinator, 12, lambda _: (1.0, 0.0) * 4, num_tasks=4)
    assert str(last.transition.reason) == "plateau"
