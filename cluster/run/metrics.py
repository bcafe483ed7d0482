"""The metrics of a step, read off the objects that declare them; docs/metrics.md explains each one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.batches.ledger import Ledger
from cluster.batches.source import BatchSource
from cluster.roles import Rollouts, SyncReport
from cluster.run.group_statistics import GroupStatistics
from cluster.run.heldout_statistics import HeldOutStatistics
from cluster.run.progress import Progress
from cluster.run.step import Step, StepClock
from curriculum.metric import Metric, Metrics, declared_metrics, metrics_of
from curriculum.transition import CurriculumReport
from learner.reports import SftReport, StepReport

DECLARING: Final = (
    SftReport,
    StepReport,
    GroupStatistics,
    BatchSource,
    Rollouts,
    Ledger,
    CurriculumReport,
    Progress,
    SyncReport,
    StepClock,
    HeldOutStatistics,
)
"""The classes whose attributes are metrics."""
METRICS: Final[Mapping[str, Metric]] = {
    metric.key: metric for kind in DECLARING for metric in declared_metrics(kind).values()
}
"""By key. A step or an evaluation may leave a metric out where it has no value; it never has another key, but for the
members of families (`curriculum.metric.is_declared`)."""


def sft_metrics(report: SftReport, clock: StepClock) -> Metrics:
    """Return the metrics of one warm-up step."""
    return metrics_of(report) | metrics_of(clock)


def step_metrics(step: Step, *, batches: BatchSource, rollouts: Rollouts, progress: Progress) -> Metrics:
    """Return the metrics of one training step; those of the learner are absent when nothing was trained on."""
    return {
        **metrics_of(step.learner),
        **metrics_of(step.groups),
        **metrics_of(batches, BatchSource),
        **metrics_of(rollouts, Rollouts),
        **metrics_of(progress.ledger),
        **metrics_of(step.curriculum),
        **metrics_of(progress),
        **metrics_of(step.sync),
        **metrics_of(step.clock),
    }
