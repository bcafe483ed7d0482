"""A question is not drawn twice into one batch while others are left."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig, RetrospectiveConfig
from curriculum.coordinator import Coordinator
from curriculum.task import TaskEntry, TaskOutcome


def start(counts, steps, *, selection="zero_accuracy", balance="none", seed=0, num_sources=1):
    phases = tuple(
        PhaseConfig(name=f"phase-{index}", max_prompt_tokens=100 * (index + 1), end=FixedSteps(steps=number))
        for index, number in enumerate(steps)
    )
    config = CurriculumConfig(
        phases=phases, balance=balance, retrospective=RetrospectiveConfig(selection=selection, max_share=0.25)
    )
    tasks = [
        TaskEntry(task_id=f"t{phase}-{i}", phase=phase, prompt_tokens=9, data_source=f"source-{i % num_sources}")
        for phase, count in enumerate(counts)
        for i in range(count)
    ]
    return Coordinator(tasks=tasks, config=config, seed=seed)


def report(coordinator, leases, accuracies_of):
    coordinator.report(
        [
            TaskOutcome(
                lease_id=lease.lease_id, task_id=lease.task_id, accuracies=accuracies_of(lease.task_id), num_samples=8
            )
            for lease in leases
        ]
    )


class MadeUpPolicy:
    """Every task has a success rate; a third are hopeless, a third easy, the rest in between."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self._rates = {}

    def __call__(self, task_id):
        if task_id not in self._rates:
            self._rates[task_id] = self._rng.choice([0.02, 0.98, self._rng.uniform(0.1, 0.9)])
        return tuple(map(float, self._rng.random(8) < self._rates[task_id]))


def paper_run(coordinator, policy, *, batch_size=128, max_rounds=10):
    """DAPO: waves of replacements until a batch is whole; returns, step by step, (sampled, trained) task ids."""
    steps = []
    while not (state := coordinator.phase_state()).finished:
        sampled, trained, answers = [], [], {}
        for _ in range(max_rounds):
            if len(trained) == batch_size:
                break
            coordinator.open_batch(batch_size - len(trained))
            leases = coordinator.lease_up_to("holder", batch_size)
            answers = {lease.lease_id: policy(lease.task_id) for lease in leases}
            sampled += [lease.task_id for lease in leases]
            trained += [lease.task_id for lease in leases if len(set(answers[lease.lease_id])) == 2]
            coordinator.report(
                [
                    TaskOutcome(
                        lease_id=lease.lease_id,
                        task_id=lease.task_id,
                        accuracies=answers[lease.lease_id],
                        num_samples=8,
                    )
                    for lease in leases
                ]
            )
        coordinator.finish_step(len(steps), num_trained_groups=len(trained))
        steps.append((state.phase, sampled, trained))
    return steps


@pytest.mark.parametrize("selection", ["zero_accuracy", "difficulty"])
@pytest.mark.parametrize("seed", range(2))
def test_no_trained_group_of_the_papers_run_repeats_a_question_of_its_batch(selection, seed):
    coordinator = start((1253, 338), (38, 10), selection=selection, seed=seed)
    steps = paper_run(coordinator, MadeUpPolicy(seed))
    assert len(steps) == 48
    assert all(len(trained) == len(set(trained)) for _, _, trained in steps)
    # all tasks of the phase have to be in the batch before one is drawn again
    for phase, sampled, _ in steps:
        visits = Counter(task_id for task_id in sampled if task_id.startswith(f"t{phase}-"))
        assert max(visits.values()) == 1 or len(visits) == (1253, 338)[phase]
    assert sum(task_id.startswith("t0-") for phase, sampled, _ in steps if phase == 1 for task_id in sampled) > 100


@settings(max_examples=40, deadline=None)
@given(
    counts=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    waves=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=2, max_size=12),
    selection=st.sampled_from(["zero_accuracy", "difficulty"]),
    balance=st.sampled_from(["none", "data_source"]),
)
def test_a_question_is_drawn_again_only_when_the_batch_has_all_questions_of_the_phase(
    counts, waves, selection, balance
):
    coordinator = start(counts, (len(waves) // 2, 99), selection=selection, balance=balance, num_sources=2)
    for number, sizes in enumerate(waves):
        phase, leases = coordinator.phase_state().phase, []
        for size in sizes:
            coordinator.open_batch(size)
            wave = coordinator.lease_up_to("holder", size)
            report(coordinator, wave, lambda _: (0.0,) * 8)
            leases += wave
        coordinator.finish_step(number, num_trained_groups=1)
        visits = Counter(lease.task_id for lease in leases if not lease.replayed)
        assert max(visits.values()) == 1 or len(visits) == counts[phase]
        assert max(visits.values()) - (min(visits.values()) if len(visits) == counts[phase] else 0) <= 1
        replayed = [lease.task_id for lease in leases if lease.replayed]
        assert len(replayed) == len(set(replayed))


def test_the_passes_of_a_phase_stay_whole_over_batches_that_cross_their_ends():
    coordinator, visits = start((10,), (99,)), Counter()
    for number in range(20):
        coordinator.open_batch(7)
        leases = coordinator.lease_up_to("holder", 7)
        report(coordinator, leases, lambda _: (0.0, 1.0) * 4)
        assert len({lease.task_id for lease in leases}) == 7
        visits.update(lease.task_id for lease in leases)
        assert coordinator.finish_step(number, num_trained_groups=7).epoch == pytest.approx(0.7 * (number + 1))
    assert set(visits.values()) == {14}


@pytest.mark.parametrize("selection", ["zero_accuracy", "difficulty"])
def test_in_a_stream_no_question_is_drawn_while_a_lease_of_it_is_open(selection):
    coordinator = start((6, 40), (1, 99), selection=selection)
    coordinator.open_stream(6)
    report(coordinator, coordinator.lease_up_to("holder", 6), lambda _: (0.0,) * 8)
    coordinator.finish_step(0, num_trained_groups=1)
    open_leases, number = {}, 1
    for _ in range(60):
        coordinator.open_stream(8)
        for lease in coordinator.lease_up_to("holder", 8):
            assert lease.task_id not in open_leases
            open_leases[lease.task_id] = lease
        done = [open_leases.pop(task_id) for task_id in list(open_leases)[:8]] if len(open_leases) > 16 else []
        report(coordinator, done, lambda _: (0.0,) * 8)
        coordinator.finish_step(number, num_trained_groups=1)
        number += 1
    assert any(lease.replayed for lease in open_leases.values())


def test_groups_that_are_given_back_free_their_questions():
    coordinator = start((4,), (99,))
    lease_ids = coordinator.open_stream(4)
    coordinator.withdraw(lease_ids[:2])
    freed = {lease.task_id for lease in coordinator.lease_up_to("holder", 4)}
    coordinator.open_stream(2)
    again = {lease.task_id for lease in coordinator.lease_up_to("holder", 4)}
    assert len(freed) == len(again) == 2
    assert not freed & again


# ---- equal shares of data sources


def test_the_fresh_tasks_of_a_batch_have_equal_shares_of_every_source():
    # 3 sources of 100, 100 and 100 tasks with ids i % 3; a batch of 7 has 3, 2, 2, then 2, 3, 2, then 2, 2, 3
    coordinator = start((300,), (99,), balance="data_source", num_sources=3)
    shares = []
    for number in range(3):
        coordinator.open_batch(7)
        leases = coordinator.lease_up_to("holder", 7)
        report(coordinator, leases, lambda _: (0.0, 1.0) * 4)
        coordinator.finish_step(number, num_trained_groups=7)
        by_source = Counter(int(lease.task_id.partition("-")[2]) % 3 for lease in leases)
        shares.append([by_source[source] for source in range(3)])
    assert shares == [[3, 2, 2], [2, 3, 2], [2, 2, 3]]


def test_an_epoch_of_balanced_sources_is_as_many_groups_as_the_phase_has_tasks():
    coordinator = start((10,), (99,), balance="data_source", num_sources=2)
    coordinator.open_batch(5)
    report(coordinator, coordinator.lease_up_to("holder", 5), lambda _: (0.0, 1.0) * 4)
    assert coordinator.finish_step(0, num_trained_groups=5).epoch == 0.5
