"""Records of the rollout: what they refuse, and what the driver sees of a group."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from actors.trajectory import FinishReason, Group, GroupMeta, Trajectory, VersionSpan
from curriculum.task import Task, TaskLease

TASK = Task(
    task_id="t",
    data_source="test",
    question="who?",
    answers=("a",),
    prompt_ids=np.arange(7, dtype=np.int32),
    phase=0,
)
LEASE = TaskLease(lease_id=4, task_id="t", attempt=0, replayed=True, phase=1)


def trajectory(num_tokens=2, *, num_logprobs=None, reason=FinishReason.STOP, version=1, spans=None):
    return Trajectory(
        response_ids=np.arange(num_tokens, dtype=np.int32),
        rollout_logprobs=np.zeros(num_tokens if num_logprobs is None else num_logprobs, np.float32),
        finish_reason=reason,
        versions=tuple(VersionSpan(start=start, version=v) for start, v in spans or [(0, version)]),
    )


def group(*trajectories):
    return Group(
        task=TASK, lease=LEASE, trajectories=trajectories, temperature=1.0, max_response_tokens=10, engine="rollout-1"
    )


def test_an_answer_needs_a_token():
    with pytest.raises(ValueError, match="at least one response token"):
        trajectory(0)


def test_an_answer_needs_a_log_probability_for_every_token():
    with pytest.raises(ValueError, match="3 response tokens but 2 log-probabilities"):
        trajectory(3, num_logprobs=2)


def test_only_an_answer_that_was_cut_may_be_empty():
    assert trajectory(0, reason=FinishReason.DEADLINE).response_ids.size == 0
    assert [reason for reason in FinishReason if reason.is_cut] == [FinishReason.DEADLINE]


def test_an_answer_that_outlived_an_update_is_as_old_as_its_oldest_token():
    t = trajectory(6, spans=[(0, 4), (2, 5), (5, 6)])
    assert (t.policy_version, t.newest_policy_version) == (4, 6)


@pytest.mark.parametrize("spans", [[(1, 4)], [(0, 4), (2, 5)], [(0, 4), (0, 5)], [(0, 1), (-1, 2)]])
def test_spans_of_versions_that_do_not_fit_the_tokens_are_refused(spans):
    with pytest.raises(ValueError, match="must start at 0 and grow"):
        trajectory(2, spans=spans)


def test_a_group_needs_an_answer():
    with pytest.raises(ValueError, match="group of task t has no trajectory"):
        group()


def test_the_driver_sees_lengths_truncations_cuts_and_the_oldest_version():
    g = group(
        trajectory(2, version=5),
        trajectory(4, version=4, reason=FinishReason.LENGTH),
        trajectory(1, version=5, reason=FinishReason.REPETITION),
        trajectory(3, spans=[(0, 5), (1, 6)], reason=FinishReason.DEADLINE),
    )
    assert GroupMeta.of(g) == GroupMeta(
        lease=LEASE,
        data_source="test",
        prompt_tokens=7,
        response_tokens=(2, 4, 1, 3),
        truncated=(False, True, True, False),
        num_repetitive=1,
        num_cut=1,
        policy_version=4,
        num_bytes=4 * 7 + 8 * (2 + 4 + 1 + 3),
    )


def test_the_arrays_of_a_group_leave_the_process_out_of_band_and_its_prompt_once():
    g = group(trajectory(2), trajectory(3))
    buffers = []
    head = pickle.dumps(g, protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) == g.num_bytes
    copy = pickle.loads(head, buffers=buffers)
    assert copy.task.prompt_ids.tolist() == TASK.prompt_ids.tolist()
    assert np.shares_memory(copy.task.prompt_ids, TASK.prompt_ids)
