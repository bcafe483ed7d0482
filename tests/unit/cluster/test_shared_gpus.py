"""Shares of one GPU's memory that add up, and recipes that cannot share one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.processes.launch import _gpu_share, _rollout_config
from cluster.recipe.config import RunConfig
from cluster.recipe.shared_gpus import RESERVED, engine_share, resting_share, working_share

PHASE = {"name": "p", "max_prompt_tokens": 100, "end": {"type": "steps", "steps": 1}}


def config(mode="all", *, engine=0.85, judge=0.1, judges=1, actors=1, ranks=1, device="cuda", **overrides):
    values = {
        "name": "x",
        "device": device,
        "model": {"path": "a/b"},
        "data": {"train": "t.parquet"},
        "sft": {"epochs": 0},
        "curriculum": {"phases": [PHASE]},
        "cluster": {"share_gpus": mode},
        "rollout": {"num_actors": actors, "engine": {"gpu_memory_utilization": engine}},
        "learner": {"num_ranks": ranks},
        "reward": {"judge": {"type": "vllm", "gpu_memory_utilization": judge, "num_replicas": judges}},
    }
    return RunConfig.model_validate({**values, **overrides})


@pytest.mark.parametrize(("engine", "judge"), [(0.85, 0.1), (0.95, 0.5), (0.3, 0.05)])
def test_the_shares_add_up_to_what_is_not_reserved_whoever_works(engine, judge):
    shared = config(engine=engine, judge=judge)
    sampling = judge + engine_share(shared, 0) + resting_share(shared)
    training = judge + working_share(shared, 0)
    assert sampling == pytest.approx(1 - RESERVED)
    assert training == pytest.approx(1 - RESERVED)


def test_the_share_of_a_judge_is_taken_from_the_engine_beside_it_alone():
    shared = config("judge", actors=3, judges=1, ranks=4)
    assert [engine_share(shared, index) for index in range(3)] == [0.75, 0.85, 0.85]
    started = [_rollout_config(shared, index).engine.gpu_memory_utilization for index in range(3)]
    assert started == [0.75, 0.85, 0.85]


def test_an_engine_without_company_keeps_its_share():
    assert engine_share(config("none"), 0) == 0.85
    assert engine_share(config(reward={"judge": {"type": "none"}}), 0) == 0.85


def test_only_a_rank_on_a_shared_gpu_has_a_share_of_it():
    share = _gpu_share(config(), 0)
    assert share is not None
    assert (share.at_work, share.at_rest) == (0.85, 0.1)
    assert _gpu_share(config("judge", ranks=4), 0) is None
    assert _gpu_share(config(device="cpu"), 0) is None
    beside_no_judge = _gpu_share(config(ranks=2, actors=2), 1)
    assert beside_no_judge is not None
    assert beside_no_judge.at_work == 0.95


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learner": {"slices": 4}}, r"learner\.slices=4: .* cluster\.share_gpus=all .*; set learner\.slices=1"),
        (
            {"rollout": {"max_policy_lag": 1}, "learner": {"importance": {"cap": 2.0}}},
            r"rollout\.max_policy_lag=1: .*; set rollout\.max_policy_lag=0",
        ),
        (
            {"rollout": {"sync": {"transport": "collective"}}},
            r"rollout\.sync\.transport=collective: NCCL .*; set it to auto or host_memory",
        ),
        ({"rollout": {"engine": {"tensor_parallel_size": 2}}}, r"tensor_parallel_size=2: .*; set it to 1"),
        ({"engine": 0.98}, r"rollout\.engine\.gpu_memory_utilization=0\.98: .*; lower it to 0\.95"),
        ({"engine": 0.98, "mode": "judge"}, r"rollout\.engine\.gpu_memory_utilization=0\.98: .*; lower it to 0\.95"),
        ({"judge": 0.85}, r"reward\.judge\.gpu_memory_utilization=0\.85: .* leaves the engine nothing; lower it"),
        ({"judges": 2}, r"reward\.judge\.num_replicas=2: .* rollout\.num_actors=1; lower it to 1"),
        ({"ranks": 2}, r"learner\.num_ranks=2: .* rollout\.num_actors=1; make them equal"),
        ({"reward": {"judge": {"type": "vllm", "num_gpus": 2}}}, r"reward\.judge\.num_gpus=2: .*; set it to 1"),
        ({"mode": "judge", "reward": {"judge": {"type": "none"}}}, r"cluster\.share_gpus=judge: there is no judge"),
    ],
)
def test_what_cannot_share_a_gpu_is_one_line(changed, message):
    with pytest.raises(ValidationError, match=message):
        config(**changed)


def test_a_judge_beside_an_engine_leaves_slices_and_lag_to_the_learner():
    shared = config(
        "judge",
        learner={"slices": 4, "importance": {"cap": 2.0}},
        rollout={"max_policy_lag": 2, "sync": {"transport": "collective"}},
    )
    assert shared.weight_transport == "collective"


def test_weights_travel_through_host_memory_where_learner_and_engine_share_a_gpu():
    assert config().weight_transport == "host_memory"
    assert config("judge", ranks=4).weight_transport == "collective"
