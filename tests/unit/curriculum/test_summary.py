import numpy as np

from curriculum.dataset import TaskSet
from curriculum.rejects import Reject, RejectReason
from curriculum.summary import summarise
from curriculum.task import Task


def task(task_id, num_tokens, phase, data_source="musique"):
    return Task(
        task_id=task_id,
        data_source=data_source,
        question="who?",
        answers=("alice",),
        prompt_ids=np.zeros(num_tokens, dtype=np.int32),
        phase=phase,
    )


def reject(number, reason):
    return Reject(number=number, item_id=None, reason=reason, detail="")


def test_a_summary_counts_sources_lengths_and_rejects():
    tasks = (task("a", 10, 0), task("b", 1, 0, "docmath"), task("c", 7, 0), task("d", 11, 1))
    rejects = (reject(1, RejectReason.EMPTY), reject(2, RejectReason.OVER_LONG), reject(3, RejectReason.OVER_LONG))
    summary = summarise(TaskSet(tasks=tasks, rejects=rejects), (10, 20), num_bins=2)
    assert (summary.num_tasks, summary.num_rejects) == (4, 3)
    assert summary.data_sources == {"musique": 3, "docmath": 1}
    assert summary.rejects == {"over_long": 2, "empty": 1}
    first, second = summary.phases
    assert (first.above_tokens, first.max_tokens, first.num_tasks) == (0, 10, 3)
    assert (first.min, first.median, first.mean, first.max) == (1, 7.0, 6.0, 10)
    assert first.bin_edges == (0.0, 5.0, 10.0)
    assert first.bin_counts == (1, 2)
    assert (second.above_tokens, second.num_tasks, second.bin_counts) == (10, 1, (1, 0))


def test_bins_are_open_below_and_closed_above_like_the_phases():
    tasks = (task("a", 5, 0), task("b", 6, 0), task("c", 10, 0))
    (phase,) = summarise(TaskSet(tasks=tasks, rejects=()), (10,), num_bins=2).phases
    assert phase.bin_counts == (1, 2)


def test_an_empty_phase_has_counts_but_no_lengths():
    _, second = summarise(TaskSet(tasks=(task("a", 5, 0),), rejects=()), (10, 20), num_bins=3).phases
    assert (second.num_tasks, second.min, second.median, second.mean, second.max) == (0, None, None, None, None)
    assert second.bin_counts == (0, 0, 0)
