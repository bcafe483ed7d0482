"""From the configuration to the parameters of the algorithms, which take no configuration object."""

from __future__ import annotations

import torch

from learner.batch.aggregation import RESPONSE_MEAN, TOKEN_MEAN, Aggregation
from learner.config import LearnerConfig
from learner.objective.objective import Objective


def torch_dtype(config: LearnerConfig) -> torch.dtype:
    """Return the type of weights and activations."""
    return torch.bfloat16 if config.dtype == "bf16" else torch.float32


def aggregation_of(config: LearnerConfig, *, warm_up: bool) -> Aggregation:
    """Return how the tokens of a group share its weight; in the warm-up always by their mean (paper Eq. 11)."""
    algorithm = config.algorithm
    if algorithm.type == "dapo" or warm_up:
        return TOKEN_MEAN
    if algorithm.type == "dr_grpo":
        return Aggregation(over="constant", constant_tokens=algorithm.constant_tokens)
    return RESPONSE_MEAN


def objective_of(config: LearnerConfig) -> Objective:
    """Return the parameters of the policy loss."""
    algorithm, importance = config.algorithm, config.importance
    low, high = (
        (algorithm.clip_low, algorithm.clip_high) if algorithm.type == "dapo" else (algorithm.clip, algorithm.clip)
    )
    return Objective(
        clip_low=low,
        clip_high=high,
        kl_coefficient=config.kl_coefficient,
        kl_estimator=config.kl_estimator,
        entropy_coefficient=config.entropy_coefficient,
        importance_cap=None if importance is None else importance.cap,
        importance_beyond="truncate" if importance is None else importance.beyond,
    )
