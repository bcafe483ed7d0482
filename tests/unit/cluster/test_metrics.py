"""Every metric is declared once, and a step produces no other."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from actors.trajectory import GroupMeta
from cluster.batches.ledger import Ledger
from cluster.group import ScoredGroup
from cluster.roles import SyncReport
from cluster.run.console import LINE
from cluster.run.group_statistics import GroupStatistics
from cluster.run.heldout_statistics import HeldOutGroup, HeldOutStatistics
from cluster.run.metrics import DECLARING, METRICS, sft_metrics, step_metrics
from cluster.run.progress import Progress
from cluster.run.step import Part, StepClock
from curriculum.controls import CONTROLS
from curriculum.metric import declared_metrics, is_declared, metrics_of
from curriculum.task import Task, TaskLease
from curriculum.transition import CurriculumReport
from learner.reports import SftReport, StepReport
from reward.score import Score

SFT = SftReport(num_response_tokens=30, learning_rate=0.1, loss=1.5, token_accuracy=0.5, grad_norm=2.0)
REPORT = StepReport(
    num_response_tokens=8,
    num_updates=1,
    num_skipped_updates=0,
    learning_rate=0.1,
    loss=-0.25,
    grad_norm=1.0,
    entropy=0.5,
    clip_fraction=0.0,
    clip_low_fraction=0.0,
    clip_high_fraction=0.0,
    mean_ratio=1.0,
    rollout_logprob_gap_mean=1e-6,
    rollout_logprob_gap_max=1e-5,
    kl_to_reference=0.1,
    masked_fraction=0.0,
    outside_nucleus=0.0,
    importance_weight=1.0,
    log_nucleus=0.0,
    prompt_sharing=False,
)
CURRICULUM = CurriculumReport(
    phase=1,
    epoch=0.5,
    pool_size=4,
    replayed_share=0.5,
    fresh_accuracy=0.5,
    fresh_prompt_tokens=20.0,
    replayed_accuracy=0.0,
    replayed_prompt_tokens=10.0,
    num_quarantined=2,
    num_tasks=40,
    transition=None,
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


def clock(parts=(), seconds=1.75):
    times = iter([0.0])
    return StepClock(parts, now=lambda: next(times, seconds))


CLOCK = clock(Part)
RIGHT = Score(answer="a", rule=1.0, judge=None, accuracy=1.0, reward=1.0, reason="the rule accepts")
WRONG = Score(answer="b", rule=0.0, judge=None, accuracy=0.0, reward=0.0, reason="the rule refuses")
GROUP = ScoredGroup(
    meta=GroupMeta(
        lease=TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0),
        data_source="test",
        prompt_tokens=10,
        response_tokens=(3, 4),
        truncated=(False, False),
        policy_version=5,
        num_bytes=0,
    ),
    scores=(RIGHT, WRONG),
    group=None,
)
GROUPS = GroupStatistics([GROUP], [GROUP], version=7)
BATCHES = SimpleNamespace(num_waiting=5, waiting_bytes=640, acceptance_rate=0.75)
ROLLOUTS = SimpleNamespace(object_store_bytes=4096, num_late=3, num_faulty=2)
PROGRESS = Progress(policy_version=7, negatives_masked=True, ledger=Ledger(trained=6, no_variance=2, returned=2))


def metrics(**changes):
    progress = changes.pop("progress", PROGRESS)
    values = {"learner": REPORT, "groups": GROUPS, "curriculum": CURRICULUM, "sync": SYNC, "clock": CLOCK}
    step = SimpleNamespace(**{**values, **changes})
    return step_metrics(step, batches=BATCHES, rollouts=ROLLOUTS, progress=progress)


def test_no_key_is_declared_twice():
    keys = Counter(metric.key for kind in DECLARING for metric in declared_metrics(kind).values())
    assert {key: number for key, number in keys.items() if number > 1} == {}


def heldout_group(control=None):
    task = Task(
        task_id="t",
        data_source="test",
        question="?",
        answers=("a",),
        prompt_ids=np.arange(10, dtype=np.int32),
        phase=0,
    )
    return HeldOutGroup(task=task, phase="short", control=control, scored=GROUP)


def test_every_metric_is_produced_by_some_step_or_evaluation():
    asked = [heldout_group(control) for control in (None, *CONTROLS)]
    heldout = metrics_of(HeldOutStatistics(asked, num_samples=2, seed=0, seconds=0.5))
    produced = {*sft_metrics(SFT, CLOCK), *metrics(), *heldout}
    assert all(is_declared(key, METRICS) for key in produced)
    families = {f"{key.rpartition('/')[0]}/*" for key in produced - METRICS.keys()}
    assert produced & METRICS.keys() | families == METRICS.keys()


def test_the_console_shows_metrics_that_exist():
    assert {key for _, key, _ in LINE} <= METRICS.keys()


def test_a_warm_up_step_tells_its_time_as_a_whole():
    assert sft_metrics(SFT, clock(seconds=0.25)) == {
        "sft/loss": 1.5,
        "sft/token_accuracy": 0.5,
        "sft/grad_norm": 2.0,
        "sft/learning_rate": 0.1,
        "sft/response_tokens": 30,
        "time/step_s": 0.25,
    }


def test_numbers_of_all_processes_come_together():
    m = metrics()
    assert (m["learner/loss"], m["learner/negatives_masked"], m["learner/prompt_sharing"]) == (-0.25, 1.0, 0.0)
    assert (m["reward/mean"], m["rollout/groups"], m["rollout/groups_trained"]) == (0.5, 1, 1)
    assert (m["rollout/policy_lag_mean"], m["rollout/policy_lag_max"]) == (2.0, 2)
    assert (m["rollout/buffer_groups"], m["rollout/buffer_bytes"], m["rollout/acceptance_rate"]) == (5, 640, 0.75)
    assert (m["rollout/object_store_bytes"], m["rollout/late_groups"], m["rollout/faulty_groups"]) == (4096, 3, 2)
    assert (m["sync/version"], m["sync/bytes"], m["time/sync_pause_s"], m["time/step_s"]) == (7, 100, 0.05, 1.75)


def test_fresh_and_replayed_groups_are_told_apart():
    m = metrics()
    assert (m["curriculum/fresh_accuracy"], m["curriculum/replayed_accuracy"]) == (0.5, 0.0)
    assert (m["curriculum/fresh_prompt_tokens"], m["curriculum/replayed_prompt_tokens"]) == (20, 10)
    assert m["curriculum/replayed_share"] == 0.5


def test_the_ledger_counts_the_whole_run():
    m = metrics()
    assert (m["ledger/trained"], m["ledger/no_variance"], m["ledger/returned"], m["ledger/too_old"]) == (6, 2, 2, 0)
    assert m["rollout/trained_share"] == 0.6
    assert "rollout/trained_share" not in metrics(progress=Progress())


def test_a_step_that_trained_on_nothing_has_no_metrics_of_learner_and_weight_update():
    m = metrics(learner=None, sync=None, groups=GroupStatistics([GROUP]))
    assert [key for key in m if key.startswith("learner/")] == ["learner/negatives_masked"], "the driver's decision"
    assert "sync/bytes" not in m
    assert m["rollout/groups_trained"] == 0


def test_a_number_that_is_nan_is_left_out_and_an_infinite_one_is_there_for_the_guards():
    assert "learner/loss" not in metrics(learner=replace(REPORT, loss=math.nan))
    assert "learner/kl_to_reference" not in metrics(learner=replace(REPORT, kl_to_reference=math.nan))
    assert sft_metrics(replace(SFT, loss=math.inf), CLOCK)["sft/loss"] == math.inf


def test_a_part_counts_the_time_that_was_waited_for_it():
    times = iter([0.0, 1.0, 3.0, 5.0])

    async def work():
        return "done"

    waiting = StepClock(Part, now=lambda: next(times))
    assert asyncio.run(waiting.wait(Part.LEARNER, work())) == "done"
    assert (waiting.learner_s, waiting.sync_s, waiting.step_s) == (2.0, 0.0, 5.0)
