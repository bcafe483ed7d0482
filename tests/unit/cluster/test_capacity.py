"""Whether the GPUs of a recipe find their places: all of an actor on one node."""

from __future__ import annotations

import pytest

from cluster.processes.capacity import Demand, demands, shortage
from cluster.recipe.config import RunConfig


def config(**overrides):
    values = {
        "name": "x",
        "device": "cuda",
        "model": {"path": "a/b"},
        "data": {"train": "t.parquet", "sft": "s.parquet"},
        "curriculum": {"phases": [{"name": "p", "max_prompt_tokens": 10, "end": {"type": "steps", "steps": 1}}]},
        "rollout": {"num_actors": 3, "engine": {"tensor_parallel_size": 4}},
        "learner": {"num_ranks": 16, "max_tokens_per_microbatch": 80_000},
        "reward": {"judge": {"type": "vllm"}},
    }
    return RunConfig.model_validate({**values, **overrides})


def short(config, **free):
    return shortage(demands(config), free)


def test_the_papers_recipe_fits_on_four_nodes_of_eight_and_not_on_three():
    assert short(config(), a=8, b=8, c=8, d=8) is None
    assert "16 learner ranks (learner.num_ranks) take a GPU each, on one node, and 12 of them find a place" in short(
        config(), a=8, b=8, c=8
    )


def test_an_engine_needs_its_gpus_on_one_node():
    four_in_pieces = dict.fromkeys("abcdefghijk", 3)
    assert sum(four_in_pieces.values()) > 29
    assert short(config(), **four_in_pieces).startswith(
        "3 rollout engines (rollout.num_actors, rollout.engine.tensor_parallel_size=4) take 4 GPUs each, on one node, "
        "and 0 of them find a place; the recipe needs 29 GPUs in all, there are: 3 on a, 3 on b"
    )


def test_ranks_leave_nodes_whole_for_engines():
    two_of_four = [Demand(what="ranks", num_gpus=1, count=8), Demand(what="engines", num_gpus=4, count=2)]
    assert shortage(two_of_four, {"a": 8, "b": 8}) is None
    assert shortage(two_of_four, {"a": 5, "b": 5, "c": 6}) is None
    assert shortage(two_of_four, {"a": 3, "b": 8, "c": 5}) is None
    assert "engines take 4 GPUs each" in shortage(two_of_four, {"a": 3, "b": 3, "c": 7, "d": 3})


def test_judges_share_a_gpu_and_ranks_do_not():
    halves = config(
        rollout={"num_actors": 1},
        learner={"num_ranks": 1, "max_tokens_per_microbatch": 80_000},
        reward={"judge": {"type": "vllm", "num_gpus": 0.5, "num_replicas": 2}},
    )
    assert short(halves, a=3) is None
    assert short(halves, a=1, b=1, c=1) is None
    assert "2 judges (reward.judge.num_replicas, reward.judge.num_gpus=0.5) take a share of one each" in short(
        halves, a=2.4
    )


def test_ten_shares_of_a_tenth_fit_on_one_gpu():
    assert shortage([Demand(what="judges", num_gpus=0.1, count=10)], {"a": 1.0}) is None


def test_a_warm_up_alone_has_no_engines_and_a_cpu_takes_nothing():
    warm_up = config(curriculum={"phases": []}, sft={"epochs": 1})
    assert [(demand.num_gpus, demand.count) for demand in demands(warm_up)] == [(1, 16)]
    assert demands(config(device="cpu", rollout={})) == []


@pytest.mark.parametrize("judge", [{"type": "none"}, {"type": "openai", "base_url": "http://h/v1", "model": "m"}])
def test_a_judge_elsewhere_takes_no_gpu(judge):
    assert len(demands(config(reward={"judge": judge}))) == 2
