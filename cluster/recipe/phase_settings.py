"""The settings of one phase, from the recipe."""

from __future__ import annotations

from dataclasses import replace

from actors.rollout import Sampling
from cluster.recipe.config import RunConfig
from curriculum.config import FixedSteps, PhaseConfig, Plateau
from curriculum.transition import PhaseState
from learner.schedule import learning_rate_at


def expected_steps(phase: PhaseConfig) -> int | None:
    """Return the number of steps of a phase, or its upper limit; None if the recipe gives neither."""
    if isinstance(phase.end, FixedSteps):
        return phase.end.steps
    return phase.end.max_steps if isinstance(phase.end, Plateau) else None


def learning_rate(config: RunConfig, state: PhaseState, earlier_steps: int) -> float:
    """Return the learning rate of the next step of a phase.

    The schedule begins with the phase, or with `learner.schedule_over=run` with the first one. It then ends with the
    last phase: those that are over count with the steps that they took, the others with those that are expected.

    Args:
        config: the recipe.
        state: the phase and the steps that it has made.
        earlier_steps: steps of the phases before it.
    """
    learner, phases = config.learner, config.curriculum.phases
    is_whole = learner.schedule_over == "run"
    before, last = (earlier_steps, len(phases)) if is_whole else (0, state.phase + 1)
    steps = [expected_steps(phase) for phase in phases[state.phase : last]]
    known = [number for number in steps if number is not None]
    return learning_rate_at(
        before + state.num_steps,
        before + sum(known) if len(known) == len(steps) else None,
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
