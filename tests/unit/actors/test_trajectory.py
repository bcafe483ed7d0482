"""Records of the rollout: what they refuse, and what the driver sees of a group."""

from __future__ import annotations

import numpy as np
import pytest

from actors.trajectory import FinishReason, Group, GroupMeta, Trajectory, VersionSpan


def trajectory(num_tokens=2, *, num_logprobs=None, reason=FinishReason.STOP, version=1, spans=None):
    return Trajectory(
        response_ids=np.arange(num_tokens, dtype=np.int32),
        rollout_logprobs=np.zeros(num_tokens if num_logprobs is None else num_logprobs, np.float32),
        finish_reason=reason,
        versions=tuple(VersionSpan(start=start, version=v) for start, v in spans or [(0, version)]),
    )


def group(*trajectories):
    return Group(
        lease_id=4,
        task_id="t",
        data_source="test",
        question="who?",
        answers=("a",),
        prompt_ids=np.arange(7, dtype=np.int32),
        trajectories=trajectories,
        phase=1,
        replayed=True,
        temperature=1.0,
        engine="rollout-1",
    )


def test_an_answer_needs_a_token():
    with pytest.raises(ValueError, match="at least one response token"):
        trajectory(0)


def test_an_answer_needs_a_log_probability_for_every_token():
    with pytest.raises(ValueError, match="3 response tokens but 2 log-probabilities"):
        trajectory(3, num_logprobs=2)


def test_only_an_answer_that_was_cut_may_be_empty():
    assert trajectory(0, reason=FinishReason.DEADLINE).response_ids.size == 0
    assert [reason for reason in FinishReason if reason.is_cut] == [FinishReason.DEADLINE, FinishReason.ABORT]


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
    assert GroupMeta.of(g, 1.5, num_slots=7) == GroupMeta(
        lease_id=4,
        task_id="t",
        phase=1,
        replayed=True,
        prompt_tokens=7,
        response_tokens=(2, 4, 1, 3),
        data_source="test",
        num_truncated=2,
        num_repetitive=1,
        num_cut=1,
        num_slots=7,
        policy_version=4,
        engine="rollout-1",
        num_bytes=4 * 7 + 8 * (2 + 4 + 1 + 3),
        seconds=1.5,
    )
