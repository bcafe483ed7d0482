"""Every metric is defined once, explained once, and computed from what happened."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from actors.trajectory import GroupMeta
from cluster.batches.ledger import Ledger
from cluster.group import ScoredGroup
from cluster.roles import RolloutCounts, SyncReport
from cluster.run.console import LINE
from cluster.run.metrics import METRICS, Supply, judge_is_away, sft_metrics, step_metrics
from cluster.run.step_clock import StepSeconds
from curriculum.task import TaskLease
from curriculum.transition import CurriculumReport, GroupShare
from learner.batch.microbatch import SftReport, StepReport
from reward.score import Score, Verdict

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"

SFT = SftReport(
    num_demonstrations=2,
    num_response_tokens=30,
    learning_rate=0.1,
    loss=1.5,
    token_accuracy=0.5,
    grad_norm=2.0,
    seconds=0.25,
)
REPORT = StepReport(
    num_groups=1,
    num_response_tokens=8,
    num_updates=1,
    num_skipped_updates=0,
    learning_rate=0.1,
    loss=-0.25,
    grad_norm=1.0,
    entropy=0.5,
    clip_fraction=0.0,
    mean_ratio=1.0,
    rollout_logprob_gap_mean=1e-6,
    rollout_logprob_gap_max=1e-5,
    kl_to_reference=None,
    seconds=0.1,
)
CURRICULUM = CurriculumReport(
    step=3,
    phase=1,
    phase_step=2,
    epoch=0.5,
    fresh=GroupShare(num_groups=1, num_scored=1, accuracy=0.5, prompt_tokens=20.0),
    replayed=GroupShare(num_groups=1, num_scored=1, accuracy=0.0, prompt_tokens=10.0),
    replayed_share=0.5,
    pool_size=4,
    transition=None,
)
SUPPLY = Supply(
    policy_lags=(0, 2, 1),
    num_waiting=5,
    waiting_bytes=640,
    object_store_bytes=4096,
    acceptance_rate=0.75,
    ledger=Ledger(trained=6, no_variance=2, returned=2),
)
SYNC = SyncReport(
    version=7,
    num_tensors=3,
    num_bytes=100,
    num_engines=2,
    seconds=0.25,
    gather_s=0.1,
    deliver_s=0.15,
    pause_s=0.05,
    probe_gap_max=1e-6,
    num_travelling_bytes=40,
)
SECONDS = StepSeconds(rollout_s=1.0, learner_s=0.5, sync_s=0.25, step_s=1.75)


def group(*scores, prompt_tokens, num_truncated=0, num_repetitive=0, num_cut=0, lengths=(3, 5)):
    meta = GroupMeta(
        lease=TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0),
        data_source="test",
        prompt_tokens=prompt_tokens,
        response_tokens=lengths,
        num_truncated=num_truncated,
        num_repetitive=num_repetitive,
        num_cut=num_cut,
        policy_version=0,
        num_bytes=0,
    )
    return ScoredGroup(meta=meta, scores=scores, group=None)


RIGHT = Score(answer="a", rule=1.0, judge=None, accuracy=1.0, reward=0.5, reason="the rule accepts; overlong")
SAVED = Score(answer="b", rule=0.0, judge=Verdict.YES, accuracy=1.0, reward=1.0, reason="the judge accepts")
WRONG = Score(answer="c", rule=0.0, judge=Verdict.NO, accuracy=0.0, reward=0.0, reason="the judge refuses")
CUT = Score(answer=None, rule=0.0, judge=None, accuracy=None, reward=None, reason="cut before its end: deadline")
UNKNOWN = Score(answer="d", rule=0.0, judge=Verdict.UNKNOWN, accuracy=None, reward=None, reason="no verdict")
SAMPLED = [group(RIGHT, SAVED, prompt_tokens=10), group(WRONG, UNKNOWN, prompt_tokens=20, num_truncated=1)]


def metrics(**changes):
    values = {"sampled": SAMPLED, "report": REPORT, "curriculum": CURRICULUM, "sync_version": 7, "sync": SYNC}
    counts = RolloutCounts(num_late=3, num_faulty=2)
    return step_metrics(**{**values, "supply": SUPPLY, "rollouts": counts, "seconds": SECONDS, **changes})


def test_every_metric_is_explained_in_the_documentation_and_the_other_way_round():
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    explained = {key: "" if unit.strip() == "–" else unit.strip() for key, unit in rows}
    assert len(rows) == len(explained), "a key is explained twice"
    assert explained == dict(METRICS)


def test_every_explanation_says_what_the_key_means():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert len(line.split("|")[3].strip()) > 5, line


def test_every_metric_is_produced_by_some_step():
    produced = sft_metrics(SFT).keys() | metrics(report=replace(REPORT, kl_to_reference=0.1)).keys()
    assert produced == METRICS.keys()


def test_the_console_shows_metrics_that_exist():
    assert {key for _, key, _ in LINE} <= METRICS.keys()


def test_rewards_count_known_answers_judge_calls_saves_and_unknowns():
    m = metrics()
    assert m["reward/accuracy"] == pytest.approx(2 / 3)
    assert m["reward/mean"] == pytest.approx(1.5 / 3)
    assert (m["reward/judge_calls"], m["reward/judge_saves"], m["reward/unknown"]) == (3, 1, 1)


def test_rollouts_are_measured_over_all_sampled_groups():
    m = metrics()
    assert (m["rollout/groups"], m["rollout/groups_trained"]) == (2, 1)
    assert (m["rollout/prompt_tokens_mean"], m["rollout/response_tokens_mean"]) == (15, 4)
    assert m["rollout/truncated_share"] == 0.25


def test_answers_that_ended_badly_are_told_apart():
    sampled = [
        group(RIGHT, WRONG, prompt_tokens=1, num_truncated=2, num_repetitive=1),
        group(CUT, CUT, prompt_tokens=1, num_cut=2),
    ]
    m = metrics(sampled=sampled)
    assert (m["rollout/truncated_share"], m["rollout/repetitive_share"], m["rollout/cut_share"]) == (0.5, 0.25, 0.5)
    assert (m["rollout/late_groups"], m["rollout/faulty_groups"]) == (3, 2)


def test_answers_that_were_cut_are_no_outage_of_the_judge():
    assert not judge_is_away([group(CUT, CUT, prompt_tokens=1)])
    assert not judge_is_away([group(SAVED, CUT, prompt_tokens=1)])
    assert judge_is_away([group(UNKNOWN, CUT, prompt_tokens=1)])
    assert not judge_is_away([group(UNKNOWN, WRONG, prompt_tokens=1)]), "half of the verdicts are there"


def test_fresh_and_replayed_groups_are_told_apart():
    m = metrics()
    assert (m["curriculum/fresh_accuracy"], m["curriculum/replayed_accuracy"]) == (0.5, 0.0)
    assert (m["curriculum/fresh_prompt_tokens"], m["curriculum/replayed_prompt_tokens"]) == (20, 10)
    assert m["curriculum/replayed_share"] == 0.5


def test_a_step_that_trained_on_nothing_has_no_learner_metrics():
    m = metrics(report=None, sync=None)
    assert not any(key.startswith("learner/") for key in m)
    assert "sync/bytes" not in m
    assert m["rollout/groups_trained"] == 0


def test_a_number_that_is_not_finite_is_left_out():
    assert "learner/loss" not in metrics(report=replace(REPORT, loss=math.nan))
    assert "sft/loss" not in sft_metrics(replace(SFT, loss=math.inf))


def test_a_step_without_known_rewards_has_no_accuracy():
    m = metrics(sampled=[group(UNKNOWN, UNKNOWN, prompt_tokens=10)])
    assert "reward/accuracy" not in m
    assert m["reward/unknown"] == 2


def test_the_lag_is_that_of_the_trained_batch_and_the_ledger_counts_the_whole_run():
    m = metrics()
    assert (m["rollout/policy_lag_mean"], m["rollout/policy_lag_max"]) == (1.0, 2)
    assert (m["rollout/buffer_bytes"], m["rollout/object_store_bytes"]) == (640, 4096)
    assert (m["rollout/buffer_groups"], m["rollout/acceptance_rate"], m["rollout/trained_share"]) == (5, 0.75, 0.6)
    assert (m["ledger/trained"], m["ledger/no_variance"], m["ledger/returned"], m["ledger/too_old"]) == (6, 2, 2, 0)


def test_before_anything_was_trained_there_is_neither_a_lag_nor_a_trained_share():
    m = metrics(report=None, supply=replace(SUPPLY, policy_lags=(), ledger=Ledger()))
    assert not {"rollout/policy_lag_mean", "rollout/policy_lag_max", "rollout/trained_share"} & m.keys()
