"""What the groups of a step were worth; three answers are known, one is not."""

from __future__ import annotations

import pytest

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup
from cluster.run.group_statistics import GroupStatistics
from curriculum.metric import metrics_of
from curriculum.task import TaskLease
from reward.score import Score, Verdict


def group(*scores, prompt_tokens=10, num_truncated=0, num_repetitive=0, num_cut=0, policy_version=0):
    meta = GroupMeta(
        lease=TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0),
        data_source="test",
        prompt_tokens=prompt_tokens,
        response_tokens=(3, 5),
        truncated=(True,) * num_truncated + (False,) * (2 - num_truncated),
        num_repetitive=num_repetitive,
        num_cut=num_cut,
        policy_version=policy_version,
        num_bytes=0,
    )
    return ScoredGroup(meta=meta, scores=scores, group=None)


RIGHT = Score(answer="a", rule=1.0, judge=None, accuracy=1.0, reward=0.5, reason="the rule accepts; overlong")
SAVED = Score(answer="b", rule=0.0, judge=Verdict.YES, accuracy=1.0, reward=1.0, reason="the judge accepts")
WRONG = Score(answer="c", rule=0.0, judge=Verdict.NO, accuracy=0.0, reward=0.0, reason="the judge refuses")
CUT = Score(answer=None, rule=0.0, judge=None, accuracy=None, reward=None, reason="cut before its end: deadline")
UNKNOWN = Score(answer="d", rule=0.0, judge=Verdict.UNKNOWN, accuracy=None, reward=None, reason="no verdict")
SAMPLED = [group(RIGHT, SAVED), group(WRONG, UNKNOWN, prompt_tokens=20, num_truncated=1)]


def test_rewards_count_known_answers_judge_calls_saves_and_unknowns():
    found = GroupStatistics(SAMPLED)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.mean_reward == pytest.approx(1.5 / 3)
    assert (found.num_judge_calls, found.num_judge_saves, found.num_unknown) == (3, 1, 1)


def test_lengths_are_measured_over_all_sampled_groups():
    found = GroupStatistics(SAMPLED, SAMPLED[:1])
    assert (found.num_sampled, found.num_trained) == (2, 1)
    assert (found.mean_prompt_tokens, found.mean_response_tokens) == (15, 4)
    assert found.truncated_share == 0.25


def test_answers_that_ended_badly_are_told_apart():
    sampled = [group(RIGHT, WRONG, num_truncated=2, num_repetitive=1), group(CUT, CUT, num_cut=2)]
    found = GroupStatistics(sampled)
    assert (found.truncated_share, found.repetitive_share, found.cut_share) == (0.5, 0.25, 0.5)


def test_answers_that_were_cut_are_no_outage_of_the_judge():
    assert not GroupStatistics([group(CUT, CUT)]).judge_is_away
    assert not GroupStatistics([group(SAVED, CUT)]).judge_is_away
    assert GroupStatistics([group(UNKNOWN, CUT)]).judge_is_away
    assert not GroupStatistics([group(UNKNOWN, WRONG)]).judge_is_away, "half of the verdicts are there"


def test_the_lag_is_that_of_the_trained_batch():
    batch = [group(RIGHT, WRONG, policy_version=version) for version in (7, 5, 6)]
    found = GroupStatistics([*batch, group(CUT, policy_version=1)], batch, version=7)
    assert (found.mean_policy_lag, found.max_policy_lag) == (1.0, 2)


def test_a_step_without_known_rewards_has_no_accuracy_and_one_without_a_batch_no_lag():
    found = metrics_of(GroupStatistics([group(UNKNOWN, UNKNOWN)]))
    assert not {"reward/accuracy", "reward/mean", "rollout/policy_lag_mean", "rollout/policy_lag_max"} & found.keys()
    assert (found["reward/unknown"], found["rollout/groups_trained"]) == (2, 0)


def test_a_step_without_groups_has_no_shares():
    assert metrics_of(GroupStatistics([])).keys() == {
        "reward/judge_calls",
        "reward/judge_saves",
        "reward/unknown",
        "rollout/groups",
        "rollout/groups_trained",
    }
