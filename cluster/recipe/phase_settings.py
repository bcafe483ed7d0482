"""What a recipe says about one phase, as numbers."""

from __future__ import annotations

from dataclasses import replace

from actors.rollout import Sampling
from cluster.recipe.config import RunConfig
from curriculum.config import FixedSteps, PhaseConfig, Plateau
from learner.schedule import learning_rate_at


def expected_steps(phase: PhaseConfig) -> int | None:
    """Steps of a phase as far as they are known in advance."""
    if isinstance(phase.end, FixedSteps):
        return phase.end.steps
    return phase.end.max_steps if isinstance(phase.end, Plateau) else None


def learning_rate(config: RunConfig, phase: PhaseConfig, phase_step: int) -> float:
    """Of a step of the phase; the schedule begins anew with every phase."""
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
    """How groups are drawn."""
    rollout = config.rollout
    return Sampling(
        num_samples=rollout.group_size,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_response_tokens=phase.max_response_tokens or rollout.max_response_tokens,
    )


def heldout_sampling(config: RunConfig, phase: PhaseConfig) -> Sampling:
    """How the one answer to a held-out question of the phase's length is drawn."""
    return replace(sampling(config, phase), num_samples=1)
