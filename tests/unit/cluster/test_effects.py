"""Settings that cannot do what they say are refused in one line each; those that do nothing are told."""

from __future__ import annotations

import pytest

from cluster.recipe.config import RunConfig
from cluster.recipe.effects import check_effects, notes_on_data
from curriculum.errors import UserError

STEPS = {"type": "steps", "steps": 6}
EPOCHS = {"type": "epochs", "epochs": 2}
SMALL_JUDGE = {"type": "vllm", "gpu_memory_utilization": 0.1}


def phases(*ends, limits=(None, None)):
    """Phases `short` and `long`."""
    names = zip(("short", "long"), (100, 200), limits, ends or (STEPS, STEPS), strict=False)
    return {
        "phases": [
            {"name": name, "max_prompt_tokens": tokens, "end": end, "max_response_tokens": limit}
            for name, tokens, limit, end in names
        ]
    }


def recipe(**overrides):
    values = {
        "name": "x",
        "model": {"path": "a/b"},
        "data": {"train": "t.parquet"},
        "sft": {"epochs": 0},
        "curriculum": phases(),
        "groups_per_batch": 8,
        "rollout": {"max_response_tokens": 100},
    }
    return RunConfig.model_validate({**values, **overrides})


def notes(**overrides):
    return check_effects(recipe(**overrides))


def faults(**overrides):
    with pytest.raises(UserError) as refused:
        check_effects(recipe(**overrides))
    return list(refused.value.lines)


def test_a_recipe_whose_settings_all_do_something_has_no_notes():
    assert notes() == []


# ---- learning rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("over", ["phase", "run"])
def test_a_falling_learning_rate_needs_phases_whose_steps_are_known(schedule, over):
    learner = {"schedule": schedule, "schedule_over": over}
    assert faults(curriculum=phases(STEPS, EPOCHS), learner=learner) == [
        f"learner.schedule={schedule}: falls over a number of steps, but long ends by epochs, whose steps are not "
        "known before; use end={type: steps, steps: N}, or learner.schedule=constant"
    ]
    plateau = {"type": "plateau", "max_steps": 50}
    assert notes(curriculum=phases(STEPS, plateau), learner=learner) == []


def test_epochs_and_a_constant_learning_rate_go_together():
    assert notes(curriculum=phases(EPOCHS, EPOCHS), learner={"warmup_steps": 3}) == []


def test_a_warm_up_that_a_phase_does_not_finish_is_told():
    short = phases({"type": "steps", "steps": 2}, STEPS)
    assert notes(curriculum=short, learner={"warmup_steps": 3}) == [
        "learner.warmup_steps=3: the learning rate does not reach its peak in short (2 steps); lower it, or set "
        "learner.schedule_over=run"
    ]
    assert notes(curriculum=short, learner={"warmup_steps": 2}) == []
    assert notes(curriculum=short, learner={"warmup_steps": 8, "schedule_over": "run"}) == []
    assert notes(curriculum=short, learner={"warmup_steps": 9, "schedule_over": "run"}) == [
        "learner.warmup_steps=9: the learning rate does not reach its peak in the run (8 steps); lower it"
    ]


def test_a_warm_up_longer_than_the_sft_is_told():
    sft = recipe(data={"train": "t", "sft": "s"}, sft={"epochs": 1, "warmup_steps": 5})
    assert notes_on_data(sft, (), 5) == []
    assert notes_on_data(sft, (), 4) == [
        "sft.warmup_steps=5: the learning rate does not reach its peak in 4 steps; lower it"
    ]


def test_what_is_left_over_of_a_schedule_is_told():
    assert notes(learner={"schedule_over": "run"}, sft={"epochs": 0, "learning_rate_floor": 0.3}) == [
        "learner.schedule_over=run: does nothing with schedule=constant and without warmup_steps",
        "sft.learning_rate_floor=0.3: does nothing with schedule=constant",
    ]


# ---- overlong answers


def test_a_penalty_that_starts_behind_every_limit_is_refused():
    assert faults(reward={"overlong": {"max_tokens": 120, "cache_tokens": 20}}) == [
        "reward.overlong: no answer of short, long can be too long: the penalty starts behind 100 tokens, the limit is "
        "100; leave max_tokens out, which then follows the limit, or raise cache_tokens"
    ]
    assert notes(reward={"overlong": {"max_tokens": 119, "cache_tokens": 20}}) == []  # one of 100 tokens loses 1/20


def test_a_penalty_that_starts_behind_the_limit_of_one_phase_is_told():
    overlong = {"max_tokens": 100, "cache_tokens": 20}
    (note,) = notes(curriculum=phases(limits=(80, None)), reward={"overlong": overlong})
    assert note.startswith("reward.overlong: no answer of short can be too long: the penalty starts behind 80 tokens")


def test_a_penalty_that_follows_the_limit_can_apply_in_every_phase():
    assert notes(curriculum=phases(limits=(80, None)), reward={"overlong": {"cache_tokens": 20}}) == []


@pytest.mark.parametrize("overlong", [{"cache_tokens": 100}, {"max_tokens": 60, "cache_tokens": 60}])
def test_a_penalty_for_every_answer_is_refused(overlong):
    (fault,) = faults(reward={"overlong": overlong})
    assert fault == (
        f"reward.overlong.cache_tokens={overlong['cache_tokens']}: every answer of short, long is punished, since "
        "max_tokens, or else the response limit, is 100; lower it"
    )


def test_a_penalty_for_every_answer_of_one_phase_is_told_and_one_beyond_its_limit_refused():
    both = phases(limits=(20, None))
    (note,) = notes(curriculum=both, reward={"overlong": {"cache_tokens": 20}})
    assert note.startswith("reward.overlong.cache_tokens=20: every answer of short is punished")
    (fault,) = faults(curriculum=both, reward={"overlong": {"cache_tokens": 21}})
    assert fault.endswith("since max_tokens, or else the response limit, is 20; lower it")


def test_released_rules_train_no_run():
    (fault,) = faults(reward={"rules": "released"})
    assert fault.startswith("reward.rules=released: they pay for junk, so no run trains on them; use")


# ---- curriculum


def test_a_batch_too_small_for_its_share_of_replay_says_so():
    replay = {**phases(), "retrospective": {"max_share": 0.25}}
    assert notes(groups_per_batch=4, curriculum=replay) == []
    assert notes(groups_per_batch=3, curriculum=replay) == [
        "curriculum.retrospective.max_share=0.25: of groups_per_batch=3 this is less than one group, so nothing is "
        "replayed; raise groups_per_batch to 4 or max_share to 0.334, or set curriculum.retrospective=null"
    ]
    assert notes(groups_per_batch=3, curriculum={**phases(), "retrospective": {"max_share": 0.334}}) == []
    assert notes(groups_per_batch=100, curriculum={**phases(), "retrospective": {"max_share": 0.01}}) == []


def test_a_share_of_replay_in_a_run_that_replays_nothing_is_not_told():
    assert notes(groups_per_batch=3, curriculum={**phases(), "retrospective": None}) == []
    assert notes(groups_per_batch=3, curriculum={**phases(STEPS), "retrospective": {"max_share": 0.25}}) == []


def test_a_plateau_that_cannot_be_seen_before_the_last_step_is_refused():
    curriculum = phases(STEPS, {"type": "plateau", "max_steps": 15, "patience": 5})
    assert faults(curriculum=curriculum) == [
        "curriculum.phases.1.end.patience=5: a plateau can be seen after 15 steps at the earliest, but max_steps=15 "
        "ends the phase; raise max_steps, lower patience, or use type=steps"
    ]
    assert notes(curriculum=phases(STEPS, {"type": "plateau", "max_steps": 16, "patience": 5})) == []


# ---- what is left over


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            {"learner": {"algorithm": {"type": "grpo"}}, "curriculum": {**phases(), "max_sampling_rounds": 2}},
            "curriculum.max_sampling_rounds=2: does nothing with learner.algorithm.type=grpo, which replaces no groups",
        ),
        (
            {"learner": {"kl_coefficient": 0.1, "kl_every": 5}},
            "learner.kl_every=5: does nothing with kl_coefficient=0.1, which measures the KL in every step",
        ),
        (
            {"learner": {"algorithm": {"type": "gspo"}}},
            "learner.algorithm.type=gspo: with mini_batches=1 every ratio is 1, as with grpo; raise "
            "learner.mini_batches",
        ),
        (
            {"learner": {"algorithm": {"type": "cispo"}}, "curriculum": {**phases(), "max_sampling_rounds": 2}},
            "learner.algorithm.type=cispo: with mini_batches=1 every ratio is 1, as with dapo; raise "
            "learner.mini_batches",
        ),
        (
            {"learner": {"algorithm": {"type": "dapo", "dual_clip": 3}}},
            "learner.algorithm.dual_clip=3: does nothing with mini_batches=1, where every ratio is 1",
        ),
        ({"learner": {"kl_estimator": "k3"}}, "learner.kl_estimator=k3: does nothing with kl_coefficient=0"),
        ({"learner": {"slices": 9}}, "learner.slices=9: groups_per_batch=8 comes in 8 slices of 1 groups"),
        ({"learner": {"slices": 5}}, "learner.slices=5: groups_per_batch=8 comes in 4 slices of 2 groups"),
        (
            {"cluster": {"share_gpus": "all"}, "reward": {"judge": {**SMALL_JUDGE, "num_gpus": 0.5}}},
            "reward.judge.num_gpus=0.5: does nothing with cluster.share_gpus=all",
        ),
        (
            {"cluster": {"share_gpus": "judge"}, "reward": {"judge": SMALL_JUDGE}, "device": "cpu"},
            "cluster.share_gpus=judge: does nothing with device=cpu",
        ),
        ({"data": {"train": "t", "sft": "s"}}, "data.sft: not read, since sft.epochs=0"),
        (
            {"data": {"train": "t", "columns": {"question": "q", "response": "r"}}},
            "data.columns.response: read by no source of this recipe",
        ),
        (
            {"data": {"train": {"items_per_length": 1, "lengths": []}, "columns": {"question": "q"}}},
            "data.columns.question: read by no source of this recipe",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_told(overrides, note):
    assert notes(**overrides) == [note]


@pytest.mark.parametrize("algorithm", [{"type": "gspo"}, {"type": "cispo"}, {"type": "dapo", "dual_clip": 3}])
def test_bounds_of_a_ratio_act_from_the_second_update_of_a_batch_on(algorithm):
    assert notes(learner={"algorithm": algorithm, "mini_batches": 2}) == []


def test_questions_of_a_run_without_phases_are_not_read():
    data = {"train": "t", "evaluation": "e", "sft": "s"}
    assert notes(data=data, sft={"epochs": 1}, curriculum={}) == [
        "data.train: not read, since curriculum.phases is empty",
        "data.evaluation: not read, since curriculum.phases is empty",
    ]


def test_markers_without_a_prompt_that_is_kept_are_refused():
    markers = {"context": ("<text>", "</text>")}
    (fault,) = faults(data={"train": "t", "markers": markers})
    assert fault == "data.markers: read with data.prompt=keep only; set that, or leave them out"
    assert notes(data={"train": "t", "markers": markers, "prompt": "keep"}) == []


def test_a_kind_for_a_data_source_that_no_question_has_is_told():
    config = recipe(reward={"kinds": {"mydta": "numeric"}})
    assert notes_on_data(config, {"mydata", "other"}, 0) == [
        "reward.kinds.mydta: no question is of this data source; there are mydata, other"
    ]
    assert notes_on_data(config, {"mydta"}, 0) == []


def test_a_guard_on_a_stage_that_the_recipe_has_not_is_refused():
    loss, reward = {"metric": "sft/loss", "above": 9}, {"metric": "reward/mean", "below": 0.1, "action": "stop"}
    assert faults(guards=[reward, loss]) == [
        "guards.1.metric='sft/loss': not measured by this recipe, since sft.epochs is 0; remove the guard"
    ]
    sft = {"data": {"sft": "s"}, "sft": {"epochs": 1}, "curriculum": {}}
    assert faults(**sft, guards=[reward, loss]) == [
        "guards.0.metric='reward/mean': not measured by this recipe, since curriculum.phases is empty; remove the guard"
    ]
    assert notes(**sft) == []  # the default guards are for every recipe


def test_every_fault_has_its_own_line():
    found = faults(curriculum=phases(EPOCHS, EPOCHS), learner={"schedule": "linear"}, reward={"rules": "released"})
    assert len(found) == 2


# ---- attention


@pytest.mark.parametrize("kernel", ["fa2", "fa3"])
@pytest.mark.parametrize(
    ("device", "dtype", "reason"), [("cpu", "bf16", "device=cpu"), ("cuda", "fp32", "learner.dtype=fp32")]
)
def test_a_flash_kernel_of_cuda_needs_a_gpu_and_bf16(kernel, device, dtype, reason):
    assert faults(device=device, learner={"attention": kernel, "dtype": dtype}) == [
        f"learner.attention={kernel}: not with {reason}, only for bf16 on a GPU; set learner.attention=auto"
    ]
    assert notes(device="cuda", learner={"attention": kernel, "dtype": "bf16"}) == []
    assert notes(device=device, learner={"attention": "auto", "dtype": dtype}) == []
