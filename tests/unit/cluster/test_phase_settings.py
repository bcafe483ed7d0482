"""The learning rate over phases, by hand: a peak of 1, phases of 4 and 6 steps."""

from __future__ import annotations

import pytest

from cluster.recipe import phase_settings
from cluster.recipe.config import RunConfig
from curriculum.transition import PhaseState

STEPS = ({"type": "steps", "steps": 4}, {"type": "steps", "steps": 6})


def rates(*, taken=(4, 6), ends=STEPS, **learner):
    """Learning rates of all steps, by phase, if the phases take that many."""
    phases = [{"name": f"p{i}", "max_prompt_tokens": 10 * (i + 1), "end": end} for i, end in enumerate(ends)]
    config = RunConfig.model_validate(
        {
            "name": "x",
            "model": {"path": "a/b"},
            "data": {"train": "t.parquet"},
            "sft": {"epochs": 0},
            "curriculum": {"phases": phases},
            "learner": {"learning_rate": 1.0, **learner},
        }
    )

    def rate(phase, step):
        state = PhaseState(phase=phase, name=f"p{phase}", num_steps=step, finished=False, to_measure=())
        return phase_settings.learning_rate(config, state, sum(taken[:phase]))

    return [[pytest.approx(rate(phase, step)) for step in range(steps)] for phase, steps in enumerate(taken)]


def test_a_schedule_begins_again_with_every_phase():
    assert rates(schedule="linear", warmup_steps=2) == [
        [0.5, 1.0, 1.0, 0.5],
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25],
    ]


def test_a_schedule_over_the_run_warms_up_once_and_falls_over_all_phases():
    assert rates(schedule="linear", schedule_over="run") == [[1.0, 0.9, 0.8, 0.7], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]
    assert rates(schedule="linear", schedule_over="run", warmup_steps=2) == [
        [0.5, 1.0, 1.0, 0.875],
        [0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    ]


def test_a_warm_up_over_the_run_may_be_longer_than_its_first_phase():
    found = rates(schedule="constant", schedule_over="run", warmup_steps=5)
    assert found == [[0.2, 0.4, 0.6, 0.8], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]


def test_a_phase_that_ended_early_counts_with_the_steps_that_it_took():
    """2 + 6 steps instead of 4 + 6: the rate still falls to the end of the run, and no further."""
    found = rates(schedule="linear", schedule_over="run", taken=(2, 6))
    assert found == [[1.0, 0.9], [0.75, 0.625, 0.5, 0.375, 0.25, 0.125]]


def test_a_plateau_counts_with_its_limit_until_it_is_over():
    ends = ({"type": "plateau", "max_steps": 4, "patience": 1}, STEPS[1])
    found = rates(ends=ends, schedule="linear", schedule_over="run", taken=(2, 6))
    assert found == [[1.0, 0.9], [0.75, 0.625, 0.5, 0.375, 0.25, 0.125]]


def test_a_constant_rate_needs_no_number_of_steps():
    ends = ({"type": "epochs", "epochs": 1.5}, STEPS[1])
    assert rates(ends=ends, warmup_steps=2) == [[0.5, 1.0, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]]
    assert rates(ends=ends, warmup_steps=2, schedule_over="run") == [[0.5, 1.0, 1.0, 1.0], [1.0] * 6]
