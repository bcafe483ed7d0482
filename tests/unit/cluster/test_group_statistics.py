"""What the groups of a step were worth; three answers are known, one is not."""

from __future__ import annotations

import pytest

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup
from cluster.run.group_statistics import GroupStatistics
from cluster.run.parts import MAX_SOURCES
from curriculum.metric import metrics_of
from curriculum.task import TaskLease
from reward.score import Score, Verdict


def group(
    *scores,
    prompt_tokens=10,
    response_tokens=(3, 5),
    num_truncated=0,
    num_repetitive=0,
    num_cut=0,
    policy_version=0,
    source="test",
    replayed=False,
):
    meta = GroupMeta(
        lease=TaskLease(lease_id=0, task_id="t", attempt=0, replayed=replayed, phase=0),
        data_source=source,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        truncated=(True,) * num_truncated + (False,) * (len(response_tokens) - num_truncated),
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


def test_accuracy_and_number_of_groups_are_told_by_data_source_and_by_length():
    found = metrics_of(
        GroupStatistics(
            [
                group(RIGHT, WRONG, source="musique", prompt_tokens=4000),
                group(SAVED, UNKNOWN, source="musique", prompt_tokens=4001),
                group(WRONG, WRONG, source="multi hop", prompt_tokens=200_000),
                group(UNKNOWN, UNKNOWN, source="frames", prompt_tokens=9000),
            ]
        )
    )
    parts = {key: value for key, value in found.items() if key.startswith(("reward/accuracy/", "rollout/groups/"))}
    assert parts == {
        "reward/accuracy/source:musique": pytest.approx(2 / 3),
        "reward/accuracy/source:multi%20hop": 0.0,
        "reward/accuracy/length:0K-4K": 0.5,
        "reward/accuracy/length:4K-8K": 1.0,
        "reward/accuracy/length:over-128K": 0.0,
        "rollout/groups/source:musique": 2,
        "rollout/groups/source:multi%20hop": 1,
        "rollout/groups/source:frames": 1,
        "rollout/groups/length:0K-4K": 1,
        "rollout/groups/length:4K-8K": 1,
        "rollout/groups/length:8K-16K": 1,
        "rollout/groups/length:over-128K": 1,
    }


def test_of_very_many_data_sources_the_largest_ones_have_numbers():
    groups = [group(RIGHT, WRONG, source=f"source-{number:03d}") for number in range(1000)]
    found = GroupStatistics([*groups, group(RIGHT, RIGHT, source="source-999")]).accuracy_of_parts
    sources = [name for name in found if name.startswith("source:")]
    assert len(sources) == MAX_SOURCES
    assert found["source:source-999"] == 0.75
    assert "source:source-030" in found
    assert "source:source-031" not in found


def test_groups_are_all_right_or_all_wrong_if_every_answer_is_known_to_be():
    sampled = [group(RIGHT, SAVED), group(WRONG, WRONG), group(WRONG, UNKNOWN), group(RIGHT, WRONG), group(CUT, RIGHT)]
    found = GroupStatistics(sampled)
    assert (found.all_right_share, found.all_wrong_share) == (0.2, 0.2)


def test_the_replayed_share_is_that_of_the_trained_groups():
    fresh, replayed = group(RIGHT, WRONG), group(RIGHT, WRONG, replayed=True)
    found = GroupStatistics([fresh, fresh, fresh, replayed, replayed], [fresh, fresh, fresh, replayed])
    assert found.trained_replayed_share == 0.25


def test_lengths_of_answers_have_percentiles_and_right_and_wrong_ones_are_told_apart():
    answers = [RIGHT if tokens % 2 else WRONG for tokens in range(1, 101)]
    found = GroupStatistics([group(*answers, response_tokens=tuple(range(1, 101)))])
    assert (found.median_response_tokens, found.long_response_tokens, found.max_response_tokens) == (50, 95, 100)
    assert (found.mean_right_tokens, found.mean_wrong_tokens) == (50, 51)


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
