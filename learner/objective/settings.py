"""From the configuration to the parameters of the algorithms, which take no configuration object."""

from __future__ import annotations

import math
from typing import Any

import torch

from learner.batch.aggregation import BATCH_MEAN, RESPONSE_MEAN, TOKEN_MEAN, Aggregation
from learner.config import Algorithm, CispoConfig, DapoConfig, DrGrpoConfig, GspoConfig, LearnerConfig
from learner.objective.objective import Objective


def torch_dtype(config: LearnerConfig) -> torch.dtype:
    """Return the type of weights and activations."""
    return torch.bfloat16 if config.dtype == "bf16" else torch.float32


def aggregation_of(config: LearnerConfig, *, warm_up: bool) -> Aggregation:
    """Return how the tokens of a group share its weight; in the warm-up always by their mean (paper Eq. 11)."""
    algorithm = config.algorithm
    if warm_up:
        return TOKEN_MEAN
    if isinstance(algorithm, DrGrpoConfig):
        return Aggregation(over="constant", constant_tokens=algorithm.constant_tokens)
    if isinstance(algorithm, DapoConfig | CispoConfig):
        return BATCH_MEAN if algorithm.token_mean == "batch" else TOKEN_MEAN
    return RESPONSE_MEAN


def objective_of(config: LearnerConfig) -> Objective:
    """Return the parameters of the policy loss."""
    importance = config.importance
    return Objective(
        **_surrogate_of(config.algorithm),
        kl_coefficient=config.kl_coefficient,
        kl_estimator=config.kl_estimator,
        entropy_coefficient=config.entropy_coefficient,
        importance_cap=None if importance is None else importance.cap,
        importance_beyond="truncate" if importance is None else importance.beyond,
        max_answer_ratio=None if importance is None else importance.max_answer_ratio,
    )


def _surrogate_of(algorithm: Algorithm) -> dict[str, Any]:
    if isinstance(algorithm, CispoConfig):
        return {"surrogate": "cispo", "clip_low": math.inf, "clip_high": algorithm.clip_high}
    if isinstance(algorithm, GspoConfig):
        return {"surrogate": "gspo", "clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
    if isinstance(algorithm, DapoConfig):
        return {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high, "dual_clip": algorithm.dual_clip}
    return {"clip_low": algorithm.clip, "clip_high": algorithm.clip, "dual_clip": algorithm.dual_clip}
