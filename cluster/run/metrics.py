"""Every metric of a run: its key, its unit and how it is computed. docs/metrics.md explains each one to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import fmean
from typing import Final

from cluster.batches.ledger import GroupOutcome, Ledger
from cluster.group import ScoredGroup
from cluster.roles import RolloutCounts, SyncReport
from cluster.run.step_clock import StepSeconds
from curriculum.transition import CurriculumReport, GroupShare
from learner.batch.microbatch import SftReport, StepReport
from reward.score import Verdict

METRICS: Final[Mapping[str, str]] = {
    "sft/loss": "nats",
    "sft/token_accuracy": "share",
    "sft/grad_norm": "",
    "sft/learning_rate": "",
    "sft/response_tokens": "tokens",
    "learner/loss": "",
    "learner/grad_norm": "",
    "learner/learning_rate": "",
    "learner/entropy": "nats",
    "learner/clip_fraction": "share",
    "learner/mean_ratio": "",
    "learner/rollout_logprob_gap_mean": "nats",
    "learner/rollout_logprob_gap_max": "nats",
    "learner/kl_to_reference": "nats",
    "learner/masked_fraction": "share",
    "learner/importance_weight": "",
    "learner/log_nucleus": "nats",
    "learner/negatives_masked": "",
    "learner/prompt_sharing": "",
    "learner/updates": "count",
    "learner/skipped_updates": "count",
    "learner/response_tokens": "tokens",
    "reward/mean": "",
    "reward/accuracy": "share",
    "reward/judge_calls": "count",
    "reward/judge_saves": "count",
    "reward/unknown": "count",
    "rollout/groups": "count",
    "rollout/groups_trained": "count",
    "rollout/prompt_tokens_mean": "tokens",
    "rollout/response_tokens_mean": "tokens",
    "rollout/truncated_share": "share",
    "rollout/repetitive_share": "share",
    "rollout/cut_share": "share",
    "rollout/late_groups": "count",
    "rollout/faulty_groups": "count",
    "rollout/policy_lag_mean": "updates",
    "rollout/policy_lag_max": "updates",
    "rollout/buffer_groups": "count",
    "rollout/buffer_bytes": "bytes",
    "rollout/object_store_bytes": "bytes",
    "rollout/acceptance_rate": "share",
    "rollout/trained_share": "share",
    "curriculum/phase": "index",
    "curriculum/epoch": "epochs",
    "curriculum/pool_size": "tasks",
    "curriculum/replayed_share": "share",
    "curriculum/fresh_accuracy": "share",
    "curriculum/fresh_prompt_tokens": "tokens",
    "curriculum/replayed_accuracy": "share",
    "curriculum/replayed_prompt_tokens": "tokens",
    **{f"ledger/{outcome}": "count" for outcome in GroupOutcome},
    "sync/version": "count",
    "sync/bytes": "bytes",
    "sync/travelling_bytes": "bytes",
    "time/sync_gather_s": "s",
    "time/sync_deliver_s": "s",
    "time/sync_pause_s": "s",
    "sync/probe_gap_max": "nats",
    "time/rollout_s": "s",
    "time/learner_s": "s",
    "time/sync_s": "s",
    "time/step_s": "s",
}
"""Key -> unit. A record may leave a key out where it has no value, and never has another key."""

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """How the batch of a step came about."""

    policy_lags: tuple[int, ...]
    """[groups of the batch] weight updates between the sampling and the training of each."""
    num_waiting: int
    """Scored groups that wait for a later batch."""
    waiting_bytes: int
    """What they take in the object store."""
    object_store_bytes: int
    """What the object stores of all nodes hold in all."""
    acceptance_rate: float
    """Share of the latest scored groups that had a signal."""
    ledger: Ledger
    """How leases ended so far."""
    negatives_masked: bool = False
    """Whether the entropy control left negative advantages out of the batch."""


def sft_metrics(report: SftReport) -> Metrics:
    """Metrics of one warm-up step."""
    return _known(
        {
            "sft/loss": report.loss,
            "sft/token_accuracy": report.token_accuracy,
            "sft/grad_norm": report.grad_norm,
            "sft/learning_rate": report.learning_rate,
            "sft/response_tokens": report.num_response_tokens,
            "time/step_s": report.seconds,
        }
    )


def step_metrics(
    *,
    sampled: Sequence[ScoredGroup],
    report: StepReport | None,
    curriculum: CurriculumReport,
    supply: Supply,
    rollouts: RolloutCounts,
    sync_version: int,
    sync: SyncReport | None,
    seconds: StepSeconds,
) -> Metrics:
    """Metrics of one training step; those of the learner are absent when nothing was trained on."""
    return _known(
        {
            **_learner_metrics(report, negatives_masked=supply.negatives_masked),
            **_reward_metrics(sampled),
            **_rollout_metrics(sampled, report),
            "rollout/late_groups": rollouts.num_late,
            "rollout/faulty_groups": rollouts.num_faulty,
            **_supply_metrics(supply),
            **_curriculum_metrics(curriculum),
            "sync/version": sync_version,
            **_sync_metrics(sync),
            **{f"time/{key}": value for key, value in asdict(seconds).items()},
        }
    )


def num_judge_calls(groups: Sequence[ScoredGroup]) -> int:
    """Answers that the judge was asked about."""
    return sum(score.judge is not None for group in groups for score in group.scores)


def judge_is_away(groups: Sequence[ScoredGroup]) -> bool:
    """Whether the judge was asked and most of its verdicts are missing."""
    missing = sum(score.judge is Verdict.UNKNOWN for group in groups for score in group.scores)
    return missing * 2 > num_judge_calls(groups)


def num_judge_saves(groups: Sequence[ScoredGroup]) -> int:
    """Answers that the rule rejected and the judge accepted."""
    return sum(score.judge is Verdict.YES and score.rule == 0.0 for group in groups for score in group.scores)


def num_unknown(groups: Sequence[ScoredGroup]) -> int:
    """Answers without a known reward."""
    return sum(score.accuracy is None for group in groups for score in group.scores)


def mean_accuracy(groups: Sequence[ScoredGroup]) -> float | None:
    """Mean over the known accuracies of all answers; None without any."""
    return _mean([accuracy for group in groups for accuracy in group.known_accuracies])


def _learner_metrics(report: StepReport | None, *, negatives_masked: bool) -> dict[str, float | None]:
    if report is None:
        return {}
    return {
        "learner/loss": report.loss,
        "learner/grad_norm": report.grad_norm,
        "learner/learning_rate": report.learning_rate,
        "learner/entropy": report.entropy,
        "learner/clip_fraction": report.clip_fraction,
        "learner/mean_ratio": report.mean_ratio,
        "learner/rollout_logprob_gap_mean": report.rollout_logprob_gap_mean,
        "learner/rollout_logprob_gap_max": report.rollout_logprob_gap_max,
        "learner/kl_to_reference": report.kl_to_reference,
        "learner/masked_fraction": report.masked_fraction,
        "learner/importance_weight": report.importance_weight,
        "learner/log_nucleus": report.log_nucleus,
        "learner/negatives_masked": float(negatives_masked),
        "learner/prompt_sharing": float(report.prompt_sharing),
        "learner/updates": report.num_updates,
        "learner/skipped_updates": report.num_skipped_updates,
        "learner/response_tokens": report.num_response_tokens,
    }


def _reward_metrics(sampled: Sequence[ScoredGroup]) -> dict[str, float | None]:
    return {
        "reward/mean": _mean([reward for group in sampled for reward in group.rewards if reward is not None]),
        "reward/accuracy": mean_accuracy(sampled),
        "reward/judge_calls": num_judge_calls(sampled),
        "reward/judge_saves": num_judge_saves(sampled),
        "reward/unknown": num_unknown(sampled),
    }


def _rollout_metrics(sampled: Sequence[ScoredGroup], report: StepReport | None) -> dict[str, float | None]:
    lengths = [tokens for group in sampled for tokens in group.meta.response_tokens]
    return {
        "rollout/groups": len(sampled),
        "rollout/groups_trained": report.num_groups if report else 0,
        "rollout/prompt_tokens_mean": _mean([float(group.meta.prompt_tokens) for group in sampled]),
        "rollout/response_tokens_mean": _mean([float(tokens) for tokens in lengths]),
        "rollout/truncated_share": _share(sum(g.meta.num_truncated for g in sampled), len(lengths)),
        "rollout/repetitive_share": _share(sum(g.meta.num_repetitive for g in sampled), len(lengths)),
        "rollout/cut_share": _share(sum(g.meta.num_cut for g in sampled), len(lengths)),
    }


def _supply_metrics(supply: Supply) -> dict[str, float | None]:
    return {
        "rollout/policy_lag_mean": _mean([float(lag) for lag in supply.policy_lags]),
        "rollout/policy_lag_max": max(supply.policy_lags, default=None),
        "rollout/buffer_groups": supply.num_waiting,
        "rollout/buffer_bytes": supply.waiting_bytes,
        "rollout/object_store_bytes": supply.object_store_bytes,
        "rollout/acceptance_rate": supply.acceptance_rate,
        "rollout/trained_share": supply.ledger.trained_share,
        **{f"ledger/{outcome}": number for outcome, number in asdict(supply.ledger).items()},
    }


def _sync_metrics(sync: SyncReport | None) -> dict[str, float | None]:
    if sync is None:
        return {}
    return {
        "sync/bytes": sync.num_bytes,
        "sync/travelling_bytes": sync.num_travelling_bytes,
        "time/sync_gather_s": sync.gather_s,
        "time/sync_deliver_s": sync.deliver_s,
        "time/sync_pause_s": sync.pause_s,
        "sync/probe_gap_max": sync.probe_gap_max,
    }


def _curriculum_metrics(report: CurriculumReport) -> dict[str, float | None]:
    return {
        "curriculum/phase": report.phase,
        "curriculum/epoch": report.epoch,
        "curriculum/pool_size": report.pool_size,
        "curriculum/replayed_share": report.replayed_share,
        **_share_metrics("fresh", report.fresh),
        **_share_metrics("replayed", report.replayed),
    }


def _share_metrics(name: str, share: GroupShare) -> dict[str, float | None]:
    return {
        f"curriculum/{name}_accuracy": share.accuracy,
        f"curriculum/{name}_prompt_tokens": share.prompt_tokens,
    }


def _known(values: Mapping[str, float | None]) -> Metrics:
    """Leaves out what has no value; a number that is not finite has none (nothing was updated)."""
    return {key: value for key, value in values.items() if value is not None and isfinite(value)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
