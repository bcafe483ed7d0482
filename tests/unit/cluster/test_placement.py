"""How many GPUs a recipe takes, and how actors share them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

import cluster.processes.placement
from cluster.processes.capacity import demands
from cluster.processes.placement import (
    ALLOCATOR_VARIABLES,
    actor_options,
    allocator_settings,
    coordinator_options,
    required_cpus,
)
from cluster.recipe.config import RunConfig
from cluster.run.stopping import Interrupted, StopSignal
from curriculum.errors import RunFailed

PHASE = {"name": "p", "max_prompt_tokens": 100, "end": {"type": "steps", "steps": 1}}


def required_gpus(config):
    return sum(demand.num_gpus * demand.count for demand in demands(config))


def config(**overrides):
    values = {
        "name": "x",
        "model": {"path": "a/b"},
        "data": {"train": "t.parquet", "sft": "s.parquet"},
        "curriculum": {"phases": [PHASE]},
        "rollout": {"num_actors": 2, "engine": {"tensor_parallel_size": 4}},
        "learner": {"num_ranks": 8},
        "reward": {"judge": {"type": "vllm", "num_gpus": 0.5, "num_replicas": 2}},
    }
    return RunConfig.model_validate({**values, **overrides})


def test_ranks_engines_and_judges_add_up():
    assert required_gpus(config()) == 8 + 2 * 4 + 2 * 0.5


@pytest.fixture
def reserved(monkeypatch):
    """The bundles of every placement group that is asked for; Ray grants all of them."""
    groups = []

    def group(bundles, *, strategy):
        async def ready():
            return True

        groups.append(bundles)
        return SimpleNamespace(ready=ready, number=len(groups) - 1)

    monkeypatch.setattr(cluster.processes.placement, "placement_group", group)
    return groups


def options_of(recipe):
    return asyncio.run(actor_options(recipe))


def places(options):
    """(placement group, bundle, GPUs) of actors."""
    strategies = [one["scheduling_strategy"] for one in options]
    return [
        (strategy.placement_group.number, strategy.placement_group_bundle_index, one["num_gpus"])
        for strategy, one in zip(strategies, options, strict=True)
    ]


@pytest.mark.parametrize(
    "judge", [{"type": "none"}, {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}]
)
def test_a_judge_without_a_model_of_its_own_takes_no_gpu(judge, reserved):
    assert required_gpus(config(reward={"judge": judge})) == 8 + 2 * 4
    (options,) = options_of(config(reward={"judge": judge})).judges
    assert options["num_gpus"] == 0


def test_on_a_cpu_nothing_takes_a_gpu_and_nothing_sees_one(reserved):
    on_cpu = config(device="cpu", rollout={"num_actors": 2})
    assert required_gpus(on_cpu) == 0
    options = options_of(on_cpu)
    assert [len(options.engines), len(options.judges), len(options.ranks)] == [2, 2, 8]
    for one in (*options.engines, *options.judges, *options.ranks):
        assert (one["num_gpus"], one["num_cpus"]) == (0, 0)
        assert one["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
    assert not reserved


def test_engines_and_judges_restart_within_the_budget_and_a_rank_never_alone():
    options = options_of(config(device="cpu", rollout={}, cluster={"max_actor_restarts": 5}))
    assert {one["max_restarts"] for one in (*options.engines, *options.judges)} == {5}
    assert [one["max_restarts"] for one in options.ranks] == [0] * 8


def test_an_engine_takes_its_tensor_parallel_gpus(reserved):
    assert [one["num_gpus"] for one in options_of(config()).engines] == [4, 4]
    assert reserved == [[{"GPU": 1, "CPU": 1}] * 8], "for the ranks alone"


# ---- shared GPUs


SMALL_JUDGE = {"type": "vllm", "gpu_memory_utilization": 0.1}


def sharing(mode, *, ranks=1, engines=1, judges=1, **overrides):
    return config(
        cluster={"share_gpus": mode},
        rollout={"num_actors": engines},
        learner={"num_ranks": ranks},
        reward={"judge": {**SMALL_JUDGE, "num_replicas": judges}},
        **overrides,
    )


def test_rank_engine_and_judge_of_one_gpu_have_parts_of_one_bundle_that_add_up_to_it(reserved):
    recipe = sharing("all")
    options = options_of(recipe)
    assert (places(options.engines), places(options.judges), places(options.ranks)) == (
        [(0, 0, 0.5)],
        [(0, 0, 0.25)],
        [(0, 0, 0.25)],
    )
    assert reserved == [[{"GPU": 1, "CPU": 3}]]
    assert required_gpus(recipe) == 1


def test_a_judge_beside_an_engine_leaves_the_ranks_their_gpus(reserved):
    recipe = sharing("judge", ranks=4, engines=3, judges=2)
    options = options_of(recipe)
    assert places(options.ranks) == [(0, rank, 1) for rank in range(4)]
    assert places(options.engines) == [(1, index, 0.5) for index in range(3)]
    assert places(options.judges) == [(1, index, 0.25) for index in range(2)]
    assert required_gpus(recipe) == 4 + 3


@pytest.mark.parametrize(
    "recipe",
    [
        config(rollout={"num_actors": 4}, learner={"num_ranks": 4}),
        sharing("all", ranks=8, engines=8),
        sharing("judge", ranks=4, engines=4),
    ],
    ids=["apart", "all", "judge"],
)
def test_a_ray_that_is_started_for_a_run_has_the_cpus_that_its_actors_reserve(recipe, reserved):
    options = options_of(recipe)
    alone = [one for one in (*options.engines, *options.judges, *options.ranks) if "scheduling_strategy" not in one]
    in_bundles = sum(bundle["CPU"] for bundles in reserved for bundle in bundles)
    assert required_cpus(recipe) == in_bundles + sum(one["num_cpus"] for one in alone)


def test_several_gpus_can_each_hold_a_rank_and_an_engine(reserved):
    recipe = sharing("all", ranks=8, engines=8)
    options = options_of(recipe)
    assert places(options.ranks) == [(0, index, 0.25) for index in range(8)]
    assert places(options.engines) == [(0, index, 0.5) for index in range(8)]
    assert required_gpus(recipe) == 8


def test_a_warm_up_alone_shares_nothing(reserved):
    recipe = config(curriculum={"phases": []}, cluster={"share_gpus": "all"}, rollout={}, reward={"judge": SMALL_JUDGE})
    assert places(options_of(recipe).ranks) == [(0, rank, 1) for rank in range(8)]


def test_gpus_that_stay_in_use_are_named_and_a_stop_does_not_wait_for_them(monkeypatch):
    pending = SimpleNamespace(ready=lambda: asyncio.Event().wait())
    monkeypatch.setattr("cluster.processes.placement.placement_group", lambda *bundles, **options: pending)
    with pytest.raises(RunFailed, match=r"learner.num_ranks=\d+: the cluster has not given them their GPUs"):
        asyncio.run(actor_options(config(device="cuda", cluster={"startup_timeout_s": 0.01})))

    async def stopped() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, stop.set)
        await StopSignal(stop).unless_stopped(actor_options(config(device="cuda")))

    with pytest.raises(Interrupted):
        asyncio.run(stopped())


def test_segments_of_the_learners_memory_grow_and_those_of_an_engine_do_not(monkeypatch, reserved):
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    options, on_cpu = options_of(config()), options_of(config(device="cpu", rollout={}))
    for one in options.ranks:
        assert one["runtime_env"]["env_vars"]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for one in (*options.engines, *options.judges, *on_cpu.ranks):
        assert not set(ALLOCATOR_VARIABLES) & one["runtime_env"]["env_vars"].keys()


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_settings_of_the_allocator_stay(name):
    own = {name: "max_split_size_mb:512", "HOME": "/root"}
    assert allocator_settings(own) == {name: "max_split_size_mb:512"}
    assert allocator_settings({name: ""}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def test_no_actor_inherits_a_secret_and_none_is_in_its_runtime_environment(monkeypatch, reserved):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    actors = options_of(config())
    for options in (coordinator_options(), *actors.engines, *actors.judges, *actors.ranks):
        environment = options["runtime_env"]["env_vars"]
        assert {"AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"} <= environment.keys()
        assert "mine" not in environment.values()
