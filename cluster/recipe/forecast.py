"""How long a run will be: steps and updates of every phase, and the groups that are sampled to measure difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from cluster.recipe.config import RunConfig
from curriculum.config import FixedEpochs, FixedSteps, PhaseConfig
from curriculum.phases import PLATEAU_WINDOW
from curriculum.pool import num_to_measure

ASSUMED_SHARES = (0.75, 0.25)
"""Share of the groups whose answers differ, from the largest to the smallest that is assumed; an assumption, as every
model and data set has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsPerStep:
    """Groups of one step of a phase, in the mean."""

    fresh: float
    """Sampled groups that are not replayed."""
    trained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseForecast:
    """What is expected of a phase."""

    name: str
    fewest_steps: int
    most_steps: int
    because: str
    """How it comes about, in one line."""
    num_measured: int
    """Groups that are sampled before its first step to measure difficulty, at most."""


def groups_per_step(*, batch_size: int, max_rounds: int, share: float | None, num_replayed: int) -> GroupsPerStep:
    """Return the groups of a step.

    Args:
        batch_size: B.
        max_rounds: rounds of one batch; each asks for what is missing after the one before.
        share: share of the groups that have a signal; None where groups without one are trained on as well.
        num_replayed: replayed groups in the first round.
    """
    if share is None:
        return GroupsPerStep(fresh=batch_size - num_replayed, trained=batch_size)
    missing = batch_size * (1 - share) ** max_rounds
    return GroupsPerStep(fresh=(batch_size - missing) / share - num_replayed, trained=batch_size - missing)


def forecast(config: RunConfig, num_tasks: Sequence[int]) -> tuple[PhaseForecast, ...]:
    """Return what is expected of every phase; `num_tasks` has the tasks of each."""
    curriculum = config.curriculum
    earlier = [0, *accumulate(num_tasks)]
    found: list[PhaseForecast] = []
    for index, phase in enumerate(curriculum.phases):
        fewest, most, because = _length(config, phase, num_tasks[index], is_first=index == 0)
        measured = sum(num_tasks[:-1]) if index == 0 else earlier[index]
        found.append(
            PhaseForecast(
                name=phase.name,
                fewest_steps=fewest,
                most_steps=most,
                because=because,
                num_measured=num_to_measure(curriculum.retrospective, measured, is_first=index == 0),
            )
        )
    return tuple(found)


def forecast_lines(config: RunConfig, num_tasks: Sequence[int]) -> list[str]:
    """Return the forecast in words, a line for each phase, one for each measurement and one for the sum."""
    lines: list[str] = []
    phases, updates = forecast(config, num_tasks), config.learner.mini_batches
    for phase in phases:
        if phase.num_measured:
            lines.append(
                f"before {phase.name}: up to {phase.num_measured} groups are sampled to measure how hard tasks are "
                f"(curriculum.retrospective.difficulty), as many as {phase.num_measured / config.groups_per_batch:.1f} "
                "batches"
            )
        lines.append(f"{phase.name}: {_steps(phase.fewest_steps, phase.most_steps, updates)}: {phase.because}")
    if len(phases) > 1:
        fewest, most = sum(phase.fewest_steps for phase in phases), sum(phase.most_steps for phase in phases)
        lines.append(f"all phases: {_steps(fewest, most, updates)}")
    return lines


def _length(config: RunConfig, phase: PhaseConfig, num_tasks: int, *, is_first: bool) -> tuple[int, int, str]:
    """Return the fewest and the most steps of a phase, and why."""
    many, few = _groups(config, is_first=is_first)
    where = _assumption(config)
    match phase.end:
        case FixedSteps(steps=steps):
            passes = _range(steps * few.fresh / num_tasks, steps * many.fresh / num_tasks, ".1f")
            return steps, steps, f"end.steps={steps}; {passes} passes over its {num_tasks} tasks{where}"
        case FixedEpochs(epochs=epochs, of="sampled"):
            return _by_epochs(epochs, num_tasks, few.fresh, many.fresh, f"fresh groups a step{where}")
        case FixedEpochs(epochs=epochs):
            return _by_epochs(epochs, num_tasks, few.trained, many.trained, f"trained groups a step{where}")
        case rule:
            fewest = min(rule.max_steps, PLATEAU_WINDOW + rule.patience)
            why = f"until the accuracy stops improving, at the latest end.max_steps={rule.max_steps}"
            return fewest, rule.max_steps, why


def _by_epochs(epochs: float, num_tasks: int, fewest: float, most: float, of: str) -> tuple[int, int, str]:
    """Return the same for a phase that ends when `epochs` groups per task have been counted."""
    steps = [ceil(epochs * num_tasks / rate - 1e-9) for rate in (most, fewest)]
    return steps[0], steps[1], f"end.epochs={epochs:g} of {num_tasks} tasks at {_range(fewest, most, '.0f')} {of}"


def _groups(config: RunConfig, *, is_first: bool) -> tuple[GroupsPerStep, GroupsPerStep]:
    """Return the groups of a step with the most and with the fewest that are sampled, or trained on."""
    retrospective = config.curriculum.retrospective
    most_replayed = 0 if is_first or retrospective is None else int(retrospective.max_share * config.groups_per_batch)
    is_dynamic = config.learner.algorithm.dynamic_sampling
    sides = [
        groups_per_step(
            batch_size=config.groups_per_batch,
            max_rounds=config.curriculum.max_sampling_rounds,
            share=share if is_dynamic else None,
            num_replayed=num_replayed,
        )
        for share, num_replayed in zip(ASSUMED_SHARES, (most_replayed, 0), strict=True)
    ]
    fresh = sorted(side.fresh for side in sides)
    trained = sorted(side.trained for side in sides)
    few, many = (GroupsPerStep(fresh=f, trained=t) for f, t in zip(fresh, trained, strict=True))
    return many, few


def _assumption(config: RunConfig) -> str:
    if not config.learner.algorithm.dynamic_sampling:
        return ""
    most, fewest = ASSUMED_SHARES
    return f", if {fewest:.0%} to {most:.0%} of the groups have a signal (assumed)"


def _steps(fewest: int, most: int, updates: int) -> str:
    return f"{_range(fewest, most, 'd')} steps, up to {most * updates} updates"


def _range(low: float, high: float, form: str) -> str:
    first, second = format(low, form), format(high, form)
    return first if first == second else f"{first} to {second}"
