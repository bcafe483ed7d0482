"""Guards: what they find in the metrics of steps, and which checkpoints they call good."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from cluster.recipe.config import DEFAULT_GUARDS, GuardConfig, RunConfig
from cluster.run.guard_state import GuardState
from cluster.run.guards import Guards, GuardStop, check_guards
from curriculum.errors import UserError

KEY = "learner/entropy"


def recipe(**overrides):
    values = {"name": "x", "model": {"path": "a/b"}, "data": {"sft": "t.parquet"}, **overrides}
    return RunConfig.model_validate(values)


def guard(action="warn", steps=1, **thresholds):
    return GuardConfig(metric=KEY, action=action, steps=steps, **(thresholds or {"below": 0.1}))


def findings(guards, values):
    return [[found.num_steps for found in guards.after_step({KEY: value})] for value in values]


def test_a_guard_is_met_when_so_many_steps_in_a_row_are_beyond_its_threshold():
    guards = Guards([guard(steps=2)], GuardState())
    assert findings(guards, [0.05, 0.05, 0.05, 0.5, 0.05, 0.05]) == [[], [2], [3], [], [], [2]]


def test_a_value_on_the_threshold_is_not_beyond_it_and_a_range_has_two_sides():
    guards = Guards([guard(above=0.9, below=0.1)], GuardState())
    assert findings(guards, [0.1, 0.9, 0.09, 0.91]) == [[], [], [1], [2]]


def test_a_step_without_the_metric_neither_counts_nor_ends_a_row():
    guards = Guards([guard(steps=2)], GuardState())
    assert [findings(guards, [0.05]), guards.after_step({}), findings(guards, [0.05])] == [[[]], [], [[2]]]


def test_an_infinite_value_is_above_every_threshold():
    assert findings(Guards([guard(above=1.0)], GuardState()), [math.inf]) == [[1]]


def test_counts_outlive_a_resume():
    state = GuardState()
    findings(Guards([guard(steps=3)], state), [0.05, 0.05])
    assert findings(Guards([guard(steps=3)], GuardState(counts=dict(state.counts))), [0.05]) == [[3]]


def test_a_warning_is_repeated_at_doubling_intervals_only():
    guards = Guards([guard(steps=3)], GuardState())
    told = [[found.is_news for found in guards.after_step({KEY: 0.05})] for _ in range(13)]
    assert [step for step, news in enumerate(told, 1) if news == [True]] == [3, 6, 12]


def test_what_acts_hardest_comes_first():
    guards = Guards([guard("warn"), guard("roll_back", below=0.2), guard("stop", below=0.3)], GuardState())
    assert [found.rule.action for found in guards.after_step({KEY: 0.0})] == ["stop", "roll_back", "warn"]


def test_a_rule_that_skips_is_judged_before_the_update_and_the_others_after_the_step():
    guards = Guards([guard("skip"), guard("warn", below=0.2)], GuardState())
    assert [found.rule.action for found in guards.before_update({KEY: 0.0})] == ["skip"]
    assert [found.rule.action for found in guards.after_step({KEY: 0.0})] == ["warn"]


def test_a_checkpoint_is_good_once_the_step_after_it_is_beyond_no_threshold():
    state = GuardState()
    guards = Guards([guard("roll_back", steps=2)], state)
    guards.after_step({KEY: 0.5})
    guards.saved(1)
    assert state.good_checkpoint is None, "nothing is known of these weights yet"
    guards.after_step({KEY: 0.5})
    guards.saved(2)
    assert state.good_checkpoint == 1
    guards.after_step({KEY: 0.05})
    guards.saved(3)
    assert state.good_checkpoint == 1, "the step after the second one showed what its weights are"
    guards.after_step({KEY: 0.5})
    assert state.good_checkpoint == 1, "the third was written while a guard counted"


def test_guards_that_only_warn_make_no_checkpoint_bad():
    state = GuardState()
    guards = Guards([guard("warn"), guard("stop", below=0.01)], state)
    guards.saved(1)
    guards.after_step({KEY: 0.05})
    assert state.good_checkpoint == 1


def test_without_a_guard_that_goes_back_or_stops_no_checkpoint_is_kept_for_it():
    state = GuardState()
    guards = Guards([guard("warn")], state)
    guards.saved(1)
    guards.after_step({KEY: 0.5})
    assert state.good_checkpoint is None


def test_a_stop_names_metric_value_bound_steps_and_the_checkpoint_to_go_on_from():
    guards = Guards([guard("stop", steps=2)], GuardState(good_checkpoint=40))
    guards.after_step({KEY: 0.05})
    (found,) = guards.after_step({KEY: 0.0123456})
    assert str(guards.stop(found)) == (
        "guard: learner/entropy is 0.01235, below 0.1, in 2 steps in a row; go on from the last good checkpoint "
        "(--resume RUN_FOLDER --step 40 --allow-change KEY) with another value of learner.learning_rate, data.train or "
        "guards"
    )


def test_a_run_goes_back_to_a_good_checkpoint_only_and_three_times_at_most():
    state = GuardState()
    guards = Guards([guard("roll_back")], state)
    (found,) = guards.after_step({KEY: 0.05})
    with pytest.raises(GuardStop, match="there is no good checkpoint to go back to; start again with"):
        guards.checkpoint_to_roll_back_to(found)
    for step in (10, 20, 30):
        state.good_checkpoint = step
        assert guards.checkpoint_to_roll_back_to(found) == step
        guards.rolled_back(step + 5)
        assert (state.counts, state.good_checkpoint) == ({}, step + 5)
    with pytest.raises(GuardStop, match="the run has gone back 3 times"):
        guards.checkpoint_to_roll_back_to(found)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            GuardConfig(metric="learner/entrpy", below=0.1),
            "guards.0.metric='learner/entrpy': no such metric; did you mean learner/entropy?",
        ),
        (
            GuardConfig(metric="learner/grad_norm", above=10, action="skip"),
            "guards.0.action='skip': learner/grad_norm is known after the update only; use roll_back or stop, or "
            "learner/entropy|importance_weight|kl_to_reference|log_nucleus|masked_fraction|outside_nucleus|"
            "rollout_logprob_gap_max|rollout_logprob_gap_mean, or a metric of the sampled groups like reward/accuracy",
        ),
        (
            GuardConfig(metric="heldout/accuracy", below=0.1, action="roll_back"),
            "guards.0.action='roll_back': heldout/accuracy is measured between two steps; use warn or stop",
        ),
        (
            GuardConfig(metric="heldout/accuracy/phase-1", below=0.1),
            "guards.0.metric='heldout/accuracy/phase-1': not measured by this recipe; set data.evaluation",
        ),
        (
            GuardConfig(metric="heldout/accuracy/*", below=0.1),
            "guards.0.metric='heldout/accuracy/*': no such metric; did you mean heldout/accuracy?",
        ),
    ],
)
def test_a_guard_that_cannot_work_is_refused(rule, message):
    with pytest.raises(UserError) as told:
        check_guards(recipe(guards=[rule]))
    assert str(told.value) == message


def test_a_guard_may_watch_a_part_and_a_control_that_the_recipe_asks_for():
    heldout = {"sft": "t.parquet", "evaluation": "e.parquet"}
    rules = [
        GuardConfig(metric="heldout/accuracy/source:hotpotqa", below=0.1, action="stop"),
        GuardConfig(metric="reward/accuracy/length:4K-8K", below=0.1, action="skip"),
        GuardConfig(metric="heldout/accuracy_no_document", above=0.5),
    ]
    check_guards(recipe(data=heldout, guards=rules, evaluation={"control": ["no_document"]}))
    with pytest.raises(UserError, match=r"guards\.2\..*: not measured by this recipe; set evaluation.control=\[no_doc"):
        check_guards(recipe(data=heldout, guards=rules))


def test_a_guard_of_held_out_questions_counts_evaluations():
    rule = GuardConfig(metric="heldout/accuracy", below=0.3, steps=2, action="stop")
    guards = Guards([rule, guard("stop", below=0.1)], GuardState(good_checkpoint=4))
    assert guards.after_evaluation({"heldout/accuracy": 0.2}) == []
    assert guards.after_step({KEY: 0.5}) == [], "a step says nothing of them"
    (found,) = guards.after_evaluation({"heldout/accuracy": 0.1})
    assert str(found) == "heldout/accuracy is 0.1, below 0.3, in 2 evaluations in a row"
    assert guards.after_evaluation({"heldout/accuracy": 0.4}) == []


def test_a_guard_of_the_kl_needs_a_recipe_that_measures_it():
    rule = {"metric": "learner/kl_to_reference", "above": 0.5}
    with pytest.raises(
        UserError, match=r"^guards\.0\.metric=.*: not measured by this recipe; set learner.kl_every=10 or"
    ):
        check_guards(recipe(guards=[rule]))
    check_guards(recipe(guards=[rule], learner={"kl_every": 10}))


@pytest.mark.parametrize("thresholds", [{}, {"above": 0.1, "below": 0.9}, {"above": math.nan}])
def test_a_guard_without_a_usable_threshold_is_refused(thresholds):
    with pytest.raises(ValidationError):
        GuardConfig(metric=KEY, **thresholds)


def test_the_guards_of_a_recipe_that_names_none_only_warn():
    check_guards(recipe())
    assert {rule.action for rule in DEFAULT_GUARDS} == {"warn"}


HEALTHY = {
    "learner/kl_to_reference": 0.08,
    "learner/rollout_logprob_gap_mean": 0.01,
    "learner/entropy": 0.036,
    "reward/mean": 0.98,
    "rollout/truncated_share": 0.05,
}
"""The worst that the demo came to, the gap of bf16, a KL of long runs."""
RUNAWAYS = {
    "the KL explodes": ("learner/kl_to_reference", math.inf, 3),
    "engine and learner drift apart": ("learner/rollout_logprob_gap_mean", 0.8, 3),
    "the entropy collapses": ("learner/entropy", 0.001, 10),
    "all rewards are 1": ("reward/mean", 1.0, 5),
    "answers run away": ("rollout/truncated_share", 0.7, 5),
}


def test_a_healthy_run_hears_nothing_from_the_guards_that_it_did_not_ask_for():
    guards = Guards(DEFAULT_GUARDS, GuardState())
    assert not any(guards.after_step(HEALTHY) for _ in range(50))


@pytest.mark.parametrize(("metric", "value", "num_steps"), RUNAWAYS.values(), ids=RUNAWAYS)
def test_a_run_that_goes_astray_is_warned_of_without_asking(metric, value, num_steps):
    guards = Guards(DEFAULT_GUARDS, GuardState())
    told = [[found.rule.metric for found in guards.after_step({**HEALTHY, metric: value})] for _ in range(num_steps)]
    assert told == [[]] * (num_steps - 1) + [[metric]]
