"""How many GPUs a recipe takes, and how actors share them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from cluster.processes.placement import (
    ALLOCATOR_VARIABLES,
    allocator_settings,
    coordinator_options,
    judge_options,
    learner_options,
    required_gpus,
    rollout_options,
)
from cluster.recipe.config import RunConfig
from cluster.run.stopping import Interrupted, StopSignal
from curriculum.errors import RunFailed


def config(**overrides):
    values = {
        "name": "x",
        "model": {"path": "a/b"},
        "data": {"train": "t.parquet", "sft": "s.parquet"},
        "rollout": {"num_actors": 2, "engine": {"tensor_parallel_size": 4}},
        "learner": {"num_ranks": 8},
        "reward": {"judge": {"type": "vllm", "num_gpus": 0.5, "num_replicas": 2}},
    }
    return RunConfig.model_validate({**values, **overrides})


def test_ranks_engines_and_judges_add_up():
    assert required_gpus(config()) == 8 + 2 * 4 + 2 * 0.5


@pytest.mark.parametrize(
    "judge", [{"type": "none"}, {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}]
)
def test_a_judge_without_a_model_of_its_own_takes_no_gpu(judge):
    assert required_gpus(config(reward={"judge": judge})) == 8 + 2 * 4
    assert judge_options(config(reward={"judge": judge}))["num_gpus"] == 0


def test_on_a_cpu_nothing_takes_a_gpu_and_nothing_sees_one():
    on_cpu = config(device="cpu", rollout={"num_actors": 2})
    assert required_gpus(on_cpu) == 0
    for options in (rollout_options(on_cpu), judge_options(on_cpu), *asyncio.run(learner_options(on_cpu))):
        assert (options["num_gpus"], options["num_cpus"]) == (0, 0)
        assert options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""


def test_engines_and_judges_restart_within_the_budget_and_a_rank_never_alone():
    on_cpu = config(device="cpu", rollout={}, cluster={"max_actor_restarts": 5})
    assert rollout_options(on_cpu)["max_restarts"] == judge_options(on_cpu)["max_restarts"] == 5
    assert [options["max_restarts"] for options in asyncio.run(learner_options(on_cpu))] == [0] * 8


def test_an_engine_takes_its_tensor_parallel_gpus():
    assert rollout_options(config())["num_gpus"] == 4


def test_gpus_that_stay_in_use_are_named_and_a_stop_does_not_wait_for_them(monkeypatch):
    pending = SimpleNamespace(ready=lambda: asyncio.Event().wait())
    monkeypatch.setattr("cluster.processes.placement.placement_group", lambda *bundles, **options: pending)
    with pytest.raises(RunFailed, match=r"learner.num_ranks=\d+: the cluster has not given them their GPUs"):
        asyncio.run(learner_options(config(device="cuda", cluster={"startup_timeout_s": 0.01})))

    async def stopped() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, stop.set)
        await StopSignal(stop).unless_stopped(learner_options(config(device="cuda")))

    with pytest.raises(Interrupted):
        asyncio.run(stopped())


def test_segments_of_the_learners_memory_grow_and_those_of_an_engine_do_not(monkeypatch):
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    granted = SimpleNamespace(ready=lambda: asyncio.sleep(0))
    monkeypatch.setattr("cluster.processes.placement.placement_group", lambda *bundles, **options: granted)
    learners = asyncio.run(learner_options(config(device="cuda")))
    for options in learners:
        assert options["runtime_env"]["env_vars"]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    on_cpu = asyncio.run(learner_options(config(device="cpu", rollout={})))
    for options in (rollout_options(config()), judge_options(config()), *on_cpu):
        assert not set(ALLOCATOR_VARIABLES) & options["runtime_env"]["env_vars"].keys()


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_settings_of_the_allocator_stay(name):
    own = {name: "max_split_size_mb:512", "HOME": "/root"}
    assert allocator_settings(own) == {name: "max_split_size_mb:512"}
    assert allocator_settings({name: ""}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def test_no_actor_inherits_a_secret_and_none_is_in_its_runtime_environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    for options in (coordinator_options(), rollout_options(config()), judge_options(config())):
        environment = options["runtime_env"]["env_vars"]
        assert {"AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"} <= environment.keys()
        assert "mine" not in environment.values()
