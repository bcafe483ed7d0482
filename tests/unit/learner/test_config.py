import pytest
from pydantic import ValidationError

from learner.config import DapoConfig, GrpoConfig, GspoConfig, LearnerConfig, SftConfig
from learner.zero3.config import zero3_config, zero3_frozen_config


def test_the_defaults_are_the_papers():
    learner, sft = LearnerConfig(), SftConfig()
    assert learner.learning_rate == 2e-6
    assert learner.algorithm == DapoConfig(clip_low=0.2, clip_high=0.28)
    assert learner.kl_coefficient == 0
    assert (sft.epochs, sft.batch_size, sft.learning_rate) == (3, 128, 5e-6)


def test_the_clips_of_gspo_are_those_of_its_paper():
    gspo = LearnerConfig.model_validate({"algorithm": {"type": "gspo"}}).algorithm
    assert gspo == GspoConfig(clip_low=3e-4, clip_high=4e-4)


@pytest.mark.parametrize(("algorithm", "dynamic"), [("grpo", False), ("dapo", True), ("gspo", False), ("cispo", True)])
def test_groups_without_variance_are_replaced_where_the_algorithms_paper_does(algorithm, dynamic):
    assert LearnerConfig.model_validate({"algorithm": {"type": algorithm}}).algorithm.dynamic_sampling is dynamic


def test_the_algorithm_is_chosen_by_type():
    assert LearnerConfig.model_validate({"algorithm": {"type": "grpo", "clip": 0.1}}).algorithm == GrpoConfig(clip=0.1)


@pytest.mark.parametrize(
    "bad",
    [
        {"algorithm": {"type": "grpo", "clip_high": 0.3}},
        {"algorithm": {"type": "ppo"}},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"schedule": "step"},
        {"zero_stage": 2},
        {"max_tokens_per_microbatch": 1},
        {"betas": (0.9, 1.0)},
        {"num_ranks": 3, "sequence_parallel": 2},
        {"offload": ("activations",)},
        {"offload": ("weights",)},
        {"kl_estimator": "k1"},
        {"algorithm": {"type": "dr_grpo"}},
        {"algorithm": {"type": "grpo", "dual_clip": 1.0}},
        {"algorithm": {"type": "grpo", "token_mean": "batch"}},
        {"algorithm": {"type": "gspo", "dual_clip": 3.0}},
        {"algorithm": {"type": "cispo", "clip_low": 0.2}},
        {"algorithm": {"type": "dapo", "token_mean": "answer"}},
    ],
)
def test_contradictory_and_unknown_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        LearnerConfig.model_validate(bad)


DR_GRPO = {"type": "dr_grpo", "constant_tokens": 10}


@pytest.mark.parametrize(
    ("algorithm", "scale", "resolved"),
    [({"type": "grpo"}, None, "group"), ({"type": "dapo"}, None, "group"), ({"type": "dapo"}, "task", "task"),
     ({"type": "grpo"}, "none", "none"), (DR_GRPO, None, "none"), (DR_GRPO, "none", "none")],
)  # fmt: skip
def test_advantages_are_divided_as_the_algorithm_does_unless_the_recipe_says_otherwise(algorithm, scale, resolved):
    config = LearnerConfig.model_validate({"algorithm": algorithm, "advantage_scale": scale})
    assert config.deviation == resolved


@pytest.mark.parametrize("scale", ["group", "task"])
def test_dr_grpo_divides_by_no_deviation(scale):
    message = f"learner.advantage_scale={scale} with algorithm.type=dr_grpo, which divides by no deviation; leave"
    with pytest.raises(ValidationError, match=message):
        LearnerConfig.model_validate({"algorithm": DR_GRPO, "advantage_scale": scale})


def test_deepspeed_runs_zero3_with_our_own_optimizer():
    settings = zero3_config(LearnerConfig(dtype="bf16", grad_clip=0.5))
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_force_ds_cpu_optimizer"] is False
    assert settings["zero_allow_untested_optimizer"] is True


def test_gradients_are_averaged_and_summed_up_in_fp32_whatever_the_model_computes_in():
    for dtype in ("fp32", "bf16"):
        settings = zero3_config(LearnerConfig(dtype=dtype))
        assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
        assert settings["communication_data_type"] == "fp32"


def test_weights_are_copied_within_some_ranks_only_where_asked():
    assert "zero_hpz_partition_size" not in zero3_config(LearnerConfig(num_ranks=16))["zero_optimization"]
    copied = LearnerConfig(num_ranks=16, ranks_per_copy=8)
    assert zero3_config(copied)["zero_optimization"]["zero_hpz_partition_size"] == 8


@pytest.mark.parametrize("ranks_per_copy", [3, 8, 16])
def test_a_copy_takes_a_whole_part_of_the_ranks(ranks_per_copy):
    message = rf"learner.ranks_per_copy={ranks_per_copy} does not divide num_ranks=8 .*; use one of \[2, 4\]"
    with pytest.raises(ValidationError, match=message):
        LearnerConfig(num_ranks=8, ranks_per_copy=ranks_per_copy)


def test_offload_is_set_only_where_asked_and_a_frozen_model_has_no_optimizer_to_offload():
    config = LearnerConfig(offload=("optimizer", "parameters"))
    assert "offload_optimizer" not in zero3_config(LearnerConfig())["zero_optimization"]
    assert zero3_config(config)["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    frozen = zero3_frozen_config(config)["zero_optimization"]
    assert "offload_optimizer" not in frozen
    assert frozen["offload_param"]["device"] == "cpu"


def test_a_reference_that_is_only_measured_against_stays_in_host_memory():
    measured = zero3_frozen_config(LearnerConfig(kl_every=5))["zero_optimization"]
    assert measured["offload_param"]["device"] == "cpu"
    assert "offload_param" not in zero3_frozen_config(LearnerConfig(kl_coefficient=0.1))["zero_optimization"]


def test_rows_at_the_same_time_are_ranks_by_ranks_that_share_one():
    assert LearnerConfig(num_ranks=8, sequence_parallel=4).num_data_ranks == 2
