"""Records of the rollout: what they refuse, and what the driver sees of a group."""

from __future__ import annotations

import numpy as np
import pytest

from actors.trajectory import FinishReason, Group, GroupMeta, Trajectory


def trajectory(num_tokens=2, *, num_logprobs=None, reason=FinishReason.STOP, version=1):
    return Trajectory(
        response_ids=np.arange(num_tokens, dtype=np.int32),
        rollout_logprobs=np.zeros(num_tokens if num_logprobs is None else num_logprobs, np.float32),
        finish_reason=reason,
        policy_version=version,
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


def test_a_group_needs_an_answer():
    with pytest.raises(ValueError, match="group of task t has no trajectory"):
        group()


def test_the_driver_sees_lengths_truncations_and_the_oldest_version():
    g = group(trajectory(2, version=5), trajectory(4, version=4, reason=FinishReason.LENGTH), trajectory(1, version=5))
    assert GroupMeta.of(g, 1.5) == GroupMeta(
        lease_id=4,
        task_id="t",
        phase=1,
        replayed=True,
        prompt_tokens=7,
        response_tokens=(2, 4, 1),
        data_source="test",
        num_truncated=1,
        policy_version=4,
        engine="rollout-1",
        num_bytes=4 * 7 + 8 * (2 + 4 + 1),
        seconds=1.5,
    )
