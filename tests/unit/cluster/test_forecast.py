"""Expected steps of a run, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.recipe.config import RunConfig
from cluster.recipe.forecast import forecast, forecast_lines, groups_per_step
from cluster.recipe.load import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def run(*ends, algorithm="dapo", retrospective=None, mini_batches=4, rounds=10):
    phases = [
        {"name": f"phase-{index}", "max_prompt_tokens": 100 * (index + 1), "end": end} for index, end in enumerate(ends)
    ]
    return RunConfig.model_validate(
        {
            "name": "x",
            "model": {"path": "a/b"},
            "data": {"train": "t.parquet"},
            "sft": {"epochs": 0},
            "curriculum": {"phases": phases, "retrospective": retrospective, "max_sampling_rounds": rounds},
            "groups_per_batch": 128,
            "learner": {"algorithm": {"type": algorithm}, "mini_batches": mini_batches},
        }
    )


def steps(config, *num_tasks):
    return [(phase.fewest_steps, phase.most_steps) for phase in forecast(config, num_tasks)]


def epochs(number, **others):
    return {"type": "epochs", "epochs": number, **others}


def test_rounds_sample_what_is_missing_until_the_batch_is_whole_or_they_are_used_up():
    # half of the groups have a signal: 8 + 4 + 2 of 8 are sampled in three rounds, and 4 + 2 + 1 trained on
    groups = groups_per_step(batch_size=8, max_rounds=3, share=0.5, num_replayed=0)
    assert (groups.fresh, groups.trained) == (14, 7)
    groups = groups_per_step(batch_size=8, max_rounds=3, share=0.5, num_replayed=2)
    assert (groups.fresh, groups.trained) == (12, 7)
    groups = groups_per_step(batch_size=8, max_rounds=3, share=1.0, num_replayed=0)
    assert (groups.fresh, groups.trained) == (8, 8)


def test_without_dynamic_sampling_a_batch_is_sampled_once_and_trained_on_whole():
    groups = groups_per_step(batch_size=8, max_rounds=3, share=None, num_replayed=2)
    assert (groups.fresh, groups.trained) == (6, 8)


def test_a_phase_of_steps_has_so_many():
    assert steps(run({"type": "steps", "steps": 38}, {"type": "steps", "steps": 10}), 1253, 338) == [(38, 38), (10, 10)]


def test_three_epochs_of_the_papers_first_phase_are_8_to_23_steps():
    # 3759 groups; with 3/4 in vain 512 (1 - .75^10) = 483 a step: 7.8; with 1/4 in vain 128 / .75 = 171: 22.03
    assert steps(run(epochs(3)), 1253) == [(8, 23)]


def test_replay_makes_room_for_fewer_fresh_groups_and_so_for_more_steps():
    # 1014 groups at 483 a step, or at 171 - 32 = 139
    config = run(epochs(3), epochs(3), retrospective={"max_share": 0.25})
    assert steps(config, 1253, 338)[1] == (3, 8)


def test_epochs_of_trained_groups_count_what_is_trained_on():
    # 3759 groups at 128 (1 - .75^10) = 120.8 to 128 a step
    assert steps(run(epochs(3, of="trained")), 1253) == [(30, 32)]


def test_grpo_trains_on_every_group_so_epochs_are_exact():
    assert steps(run(epochs(2), algorithm="grpo"), 1280) == [(20, 20)]
    assert steps(run(epochs(2, of="trained"), algorithm="grpo"), 1281) == [(21, 21)]


def test_a_plateau_has_an_upper_limit_and_at_least_window_and_patience():
    assert steps(run({"type": "plateau", "max_steps": 100, "patience": 5}), 1253) == [(15, 100)]
    assert steps(run({"type": "plateau", "max_steps": 9}), 1253) == [(9, 9)]


def test_the_lines_say_how_it_comes_about_and_what_is_assumed():
    replay = {"selection": "difficulty", "difficulty": "transition", "max_share": 0.25}
    config = run(epochs(3), {"type": "steps", "steps": 10}, retrospective=replay)
    assert forecast_lines(config, [1253, 338]) == [
        "phase-0: 8 to 23 steps, up to 92 updates: end.epochs=3 of 1253 tasks at 171 to 483 fresh groups a step, if "
        "25% to 75% of the groups have a signal (assumed)",
        "before phase-1: up to 1000 groups are sampled to measure how hard tasks are "
        "(curriculum.retrospective.difficulty), as many as 7.8 batches",
        "phase-1: 10 steps, up to 40 updates: end.steps=10; 4.1 to 14.3 passes over its 338 tasks, if 25% to 75% of "
        "the groups have a signal (assumed)",
        "all phases: 18 to 33 steps, up to 132 updates",
    ]


@pytest.mark.parametrize(("difficulty", "measured"), [("latest", [0, 0, 0]), ("base", [30, 0, 0]),
                                                      ("transition", [0, 10, 30])])  # fmt: skip
def test_measuring_costs_a_group_per_task(difficulty, measured):
    config = run(*[epochs(1)] * 3, retrospective={"selection": "difficulty", "difficulty": difficulty})
    assert [phase.num_measured for phase in forecast(config, (10, 20, 5))] == measured


@pytest.mark.parametrize("run_of_the_paper", ["14b_dapo", "14b_grpo", "32b_dapo", "32b_grpo"])
def test_a_run_of_the_paper_has_about_48_steps_of_four_updates(run_of_the_paper):
    config = load_recipe(RECIPES / f"qwenlong_l1_{run_of_the_paper}.yaml")
    model, algorithm = run_of_the_paper.split("_")
    assert config.name == f"qwenlong-l1-{model}-{algorithm}"
    assert (config.learner.algorithm.type, config.model.path[-3:].lower()) == (algorithm, model)
    assert forecast_lines(config, [1253, 338])[-1] == "all phases: 48 steps, up to 192 updates"
