"""The settings of one phase, from the recipe."""

from __future__ import annotations

from dataclasses import replace

from actors.rollout import Sampling
from cluster.recipe.config import RunConfig
from curriculum.config import FixedSteps, PhaseConfig, Plateau
from learner.schedule import learning_rate_at


def expected_steps(phase: PhaseConfig) -> int | None:
    """Return the number of steps of a phase, or its upper limit; None if the recipe gives neither."""
    if isinstance(phase.end, FixedSteps):
        return phase.end.steps
    return phase.end.max_steps if isinstance(phase.end, Plateau) else None


def learning_rate(config: RunConfig, phase: PhaseConfig, phase_step: int) -> float:
    """Return the learning rate of a step of the phase; the schedule starts again with every phase."""
    learner = config.learner
    return learning_rate_at(
        phase_step,
        expected_steps(phase),
        peak=learner.learning_rate,
        warmup_steps=learner.warmup_steps,
        schedule=learner.schedule,
        floor=0.0,
    )


def sampling(config: RunConfig, phase: PhaseConfig) -> Sampling:
    """Return how the groups of a phase are sampled."""
    rollout = config.rollout
    return Sampling(
        num_samples=rollout.group_size,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_response_tokens=phase.max_response_tokens or rollout.max_response_tokens,
    )


def heldout_sampling(config: RunConfig, phase: PhaseConfig) -> Sampling:
    """Return how the answers to a held-out question of the phase's length are sampled."""
    return replace(sampling(config, phase), num_samples=config.evaluation.num_samples)
