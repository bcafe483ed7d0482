"""What a GPU or a model's shape rules out, from configurations alone: one line with key, value and way out."""

from __future__ import annotations

import pytest
from transformers import Qwen2Config, Qwen3MoeConfig

from cluster.doctor.findings import gpu_faults
from cluster.doctor.gpus import Gpus
from cluster.recipe.cards import check_cards, check_this_machine, engine_bytes, longest_row
from cluster.recipe.config import RunConfig
from cluster.recipe.model_shape import check_shape, check_tensor_parallel, model_shape
from curriculum.errors import UserError

GIB = 1 << 30
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
}


PHASE = {"name": "p", "max_prompt_tokens": 60_000, "end": {"type": "steps", "steps": 1}}


@pytest.fixture
def recipe(tmp_path):
    """Makes a recipe for GPUs, with folders that hold the configuration of policy and judge."""

    def make(*, policy=QWEN_7B, judge=QWEN_7B, judge_keys=None, **overrides):
        for name, shape in (("policy", policy), ("judge", judge)):
            Qwen2Config(**shape).save_pretrained(tmp_path / name)
        values = {
            "name": "x",
            "device": "cuda",
            "model": {"path": str(tmp_path / "policy")},
            "data": {"train": "t.parquet", "sft": "s.parquet"},
            "curriculum": {
                "phases": [{"name": "p", "max_prompt_tokens": 60_000, "end": {"type": "steps", "steps": 1}}]
            },
            "rollout": {"max_response_tokens": 10_000},
            "learner": {"dtype": "bf16", "num_ranks": 4, "max_tokens_per_microbatch": 160_000},
            "reward": {"judge": {"type": "vllm", "model": str(tmp_path / "judge"), **(judge_keys or {})}},
        }
        return RunConfig.model_validate({**values, **overrides})

    return make


def faults(config, card_gib):
    with pytest.raises(UserError) as caught:
        check_cards(config, card_gib * GIB)
    return caught.value.args


LARGE = {"learner": {"dtype": "bf16", "num_ranks": 4, "sequence_parallel": 4, "max_tokens_per_microbatch": 160_000}}
CHECKPOINTED = {"learner": LARGE["learner"] | {"gradient_checkpointing": True}}
OFFLOADED = {"learner": CHECKPOINTED["learner"] | {"offload": ["optimizer"]}}


def test_the_recipe_of_one_node_fits_80_gib_and_says_what_a_smaller_card_lacks(recipe):
    check_cards(recipe(**CHECKPOINTED), 80 * GIB)
    check_cards(recipe(**OFFLOADED), 40 * GIB)
    (rank,) = faults(recipe(**CHECKPOINTED), 40)
    assert rank.startswith("learner.num_ranks=4: a rank takes 51.4 GiB (activations 16.8 GiB, optimizer 21.3 GiB, ")
    assert rank.endswith(
        "the smallest GPU has 40.0 GiB; add optimizer to learner.offload, raise num_ranks or "
        "learner.sequence_parallel=4, or lower learner.max_tokens_per_microbatch=160000"
    )


def test_without_checkpointing_that_is_the_first_way_out(recipe):
    (rank,) = faults(recipe(**LARGE), 80)
    assert "; set learner.gradient_checkpointing=true, add optimizer to learner.offload, raise" in rank


def test_an_engine_must_hold_its_weights_and_one_sequence(recipe):
    # weights 14.2 GiB; 70,000 tokens x 28 layers x 2 x 512 x 2 bytes = 3.7 GiB: 17.9 GiB
    small = {"learner": OFFLOADED["learner"] | {"num_ranks": 16, "sequence_parallel": 4}}
    no_rank = recipe(**small, reward={"judge": {"type": "none"}})
    check_cards(no_rank, 24 * GIB)
    (engine,) = (fault for fault in faults(no_rank, 20) if fault.startswith("rollout"))
    assert engine == (
        "rollout.engine.gpu_memory_utilization=0.85: is 17.0 GiB of the smallest GPU's 20.0 GiB, and the weights with "
        "one sequence of 70000 tokens take 17.9 GiB on each GPU; raise it or tensor_parallel_size=1, or lower "
        "curriculum.phases"
    )


def test_a_judge_must_hold_its_own(recipe):
    (judge,) = faults(recipe(**OFFLOADED, judge_keys={"gpu_memory_utilization": 0.3}), 40)
    assert judge.startswith("reward.judge.gpu_memory_utilization=0.3: is 12.0 GiB of the smallest GPU's 40.0 GiB, and")
    assert judge.endswith("take 14.6 GiB on each GPU; raise it or num_gpus=1, or lower max_model_len")


def test_gpus_of_an_engine_share_weights_and_heads_but_repeat_the_last_head(recipe, tmp_path):
    recipe()
    shape = model_shape(Qwen2Config.from_pretrained(tmp_path / "policy"))
    per_token = 28 * 2 * 128 * 2  # of one head
    sizes = [engine_bytes(shape, num_gpus=n, value_bytes=2, tokens=1000) for n in (1, 4, 28)]
    weights = [2 * -(-shape.weights // n) for n in (1, 4, 28)]
    assert [size - own for size, own in zip(sizes, weights, strict=True)] == [
        4 * 1000 * per_token,
        1000 * per_token,
        1000 * per_token,
    ]


def test_the_longest_row_is_a_group_as_far_as_a_row_goes(recipe):
    assert longest_row(recipe()) == 60_000 + 8 * 10_000
    learner = {"num_ranks": 4, "max_tokens_per_microbatch": 70_000}
    assert longest_row(recipe(learner=learner)) == 70_000


def test_nothing_is_compared_on_a_cpu_without_a_known_card_or_with_experts(recipe, tmp_path):
    check_cards(recipe(device="cpu"), GIB)
    check_cards(recipe(), None)
    config = recipe(reward={"judge": {"type": "none"}})
    Qwen3MoeConfig(num_experts=4).save_pretrained(tmp_path / "policy")
    check_cards(config, GIB)


# what GPUs cannot share evenly


def undivided(num_gpus, **shape):
    with pytest.raises(UserError) as caught:
        check_tensor_parallel(Qwen2Config(**QWEN_7B | shape), num_gpus, key="k", name="m")
    return str(caught.value)


def test_engines_divide_heads_key_value_heads_mlp_and_vocabulary():
    assert undivided(8) == "k=8: does not divide the 28 attention heads of m; use one of [1, 2, 4]"
    assert undivided(7) == "k=7: does not divide the 4 key-value heads of m; use one of [1, 2, 4]"
    assert "k=4: does not divide the 18 columns of the MLP (intermediate_size) of m" in undivided(
        4, intermediate_size=18
    )
    twelve = {"num_attention_heads": 12, "num_key_value_heads": 3, "intermediate_size": 12}
    assert "k=3: does not divide the 128 entries of the vocabulary, filled up to a multiple of 64, of m" in undivided(
        3, **twelve, vocab_size=100
    )


def test_key_value_heads_are_repeated_where_there_are_more_gpus():
    eight = Qwen2Config(**QWEN_7B | {"num_attention_heads": 32, "intermediate_size": 64})
    check_tensor_parallel(eight, 8, key="k", name="m")


BAD_GPUS = [
    (
        {"rollout": {"engine": {"tensor_parallel_size": 8}}},
        {},
        "rollout.engine.tensor_parallel_size=8: does not",
    ),
    ({}, {"num_gpus": 8}, "reward.judge.num_gpus=8: does not divide the 28 attention heads of reward.judge.model="),
    ({}, {"num_gpus": 0}, "reward.judge.num_gpus=0: with device=cuda a judge of type vllm needs a GPU, or a share"),
    (
        {},
        {"num_gpus": 0.5, "gpu_memory_utilization": 0.5},
        "reward.judge.gpu_memory_utilization=0.5: with reward.judge.num_gpus=0.5 others share its GPU, and beside each "
        "engine CUDA takes memory of its own; lower it to 0.45 or less",
    ),
    (
        {"learner": {"num_ranks": 8, "sequence_parallel": 8, "max_tokens_per_microbatch": 160_000}},
        {},
        "learner.sequence_parallel=8 does not divide the model's 28 heads",
    ),
]


@pytest.mark.parametrize(("keys", "judge_keys", "line"), BAD_GPUS)
def test_what_an_engine_or_rank_would_refuse_is_refused_before_it_starts(keys, judge_keys, line, recipe):
    config = recipe(judge_keys=judge_keys, **keys)
    with pytest.raises(UserError) as caught:
        check_shape(config, config.model.path)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("judge_keys", [{"num_gpus": 4}, {"num_gpus": 0.5, "gpu_memory_utilization": 0.45}, {}])
def test_a_judge_with_whole_gpus_or_with_its_share_of_one_passes(judge_keys, recipe):
    config = recipe(judge_keys=judge_keys)
    check_shape(config, config.model.path)


def test_the_gpus_of_a_judge_do_not_matter_to_a_warm_up_alone(recipe):
    config = recipe(judge_keys={"num_gpus": 0}, curriculum={"phases": []}, sft={"epochs": 1})
    check_shape(config, config.model.path)


def test_check_looks_at_this_machine_only_where_it_has_a_driver(recipe, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    class Facts:
        name, versions, torch_cuda, gpus = "here", {"torch": "2"}, "13.0", Gpus()

    monkeypatch.setattr("cluster.recipe.cards.node_facts", lambda folder: Facts)
    check_this_machine(recipe())
    Facts.gpus = Gpus(driver="550.1", cuda="12.4", fault="it is broken")
    assert len(list(gpu_faults(Facts))) == 2
    with pytest.raises(UserError, match=r"here: NVIDIA driver 550\.1 is older than 580"):
        check_this_machine(recipe())
    check_this_machine(recipe(device="cpu"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_this_machine(recipe())
