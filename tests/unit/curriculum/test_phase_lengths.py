import numpy as np

from curriculum.phase_lengths import phase_lengths
from curriculum.task import Task


def task(task_id, num_tokens, phase):
    return Task(
        task_id=task_id,
        data_source="musique",
        question="who?",
        answers=("alice",),
        prompt_ids=np.zeros(num_tokens, dtype=np.int32),
        phase=phase,
    )


def test_every_phase_has_its_limits_lengths_and_bins():
    tasks = (task("a", 10, 0), task("b", 1, 0), task("c", 7, 0), task("d", 11, 1))
    first, second = phase_lengths(tasks, (10, 20), num_bins=2)
    assert (first.above_tokens, first.max_tokens, first.num_tasks) == (0, 10, 3)
    assert (first.min, first.median, first.mean, first.max) == (1, 7.0, 6.0, 10)
    assert first.bin_edges == (0.0, 5.0, 10.0)
    assert first.bin_counts == (1, 2)
    assert (second.above_tokens, second.num_tasks, second.bin_counts) == (10, 1, (1, 0))


def test_bins_are_open_below_and_closed_above_like_the_phases():
    tasks = (task("a", 5, 0), task("b", 6, 0), task("c", 10, 0))
    (phase,) = phase_lengths(tasks, (10,), num_bins=2)
    assert phase.bin_counts == (1, 2)


def test_an_empty_phase_has_counts_but_no_lengths():
    _, second = phase_lengths((task("a", 5, 0),), (10, 20), num_bins=3)
    assert (second.num_tasks, second.min, second.median, second.mean, second.max) == (0, None, None, None, None)
    assert second.bin_counts == (0, 0, 0)
