"""Which source of batches a recipe asks for."""

from __future__ import annotations

from math import ceil
from typing import Any

from cluster.batches.bounded_lag import BoundedLagSource
from cluster.batches.on_policy import OnPolicySource
from cluster.batches.source import BatchSource
from cluster.recipe.config import RunConfig
from cluster.roles import Curriculum, Rollouts


def batch_source(config: RunConfig, curriculum: Curriculum, rollouts: Rollouts) -> BatchSource:
    """Return strictly on-policy batches, or a source with a bounded lag."""
    dynamic_sampling = config.learner.algorithm.dynamic_sampling
    common: dict[str, Any] = {
        "batch_size": config.groups_per_batch,
        "slice_size": ceil(config.groups_per_batch / config.learner.slices),
        "max_rounds": config.curriculum.max_sampling_rounds if dynamic_sampling else 1,
        "dynamic_sampling": dynamic_sampling,
        "mask_truncated": config.learner.mask_truncated,
    }
    if config.rollout.max_policy_lag == 0:
        return OnPolicySource(curriculum, rollouts, **common)
    return BoundedLagSource(curriculum, rollouts, max_policy_lag=config.rollout.max_policy_lag, **common)
