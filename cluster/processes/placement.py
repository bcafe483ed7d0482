"""How many GPUs and CPUs each actor takes, and whether the cluster has them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.recipe.config import RunConfig
from curriculum.errors import RunFailed
from curriculum.secrets import blanked_secrets
from reward.config import VllmJudge

CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
"""One thread per process: on a small machine the processes share the cores."""

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocator, by its present and its former name."""


def required_gpus(config: RunConfig) -> float:
    """Return the GPUs of all actors together; 0 with `device: cpu`."""
    if config.device == "cpu":
        return 0
    judge = config.reward.judge
    judges = judge.num_gpus * judge.num_replicas if isinstance(judge, VllmJudge) else 0
    rollouts = config.rollout.num_actors * config.rollout.engine.tensor_parallel_size
    return config.learner.num_ranks + rollouts + judges


def check_capacity(config: RunConfig) -> None:
    """Compare the recipe with the cluster before any actor starts.

    Raises:
        RunFailed: there are too few GPUs.
    """
    needed, found = required_gpus(config), ray.cluster_resources().get("GPU", 0)
    if needed > found:
        raise RunFailed(
            f"device=cuda: the recipe needs {needed:g} GPUs ({config.learner.num_ranks} learner ranks, "
            f"{config.rollout.num_actors} rollout actors x {config.rollout.engine.tensor_parallel_size}, judges), "
            f"the cluster has {found:g}; add nodes, lower the counts, or set device=cpu"
        )


def rollout_options(config: RunConfig) -> dict[str, Any]:
    """Return the Ray options of a rollout actor."""
    return _options(config, gpus=config.rollout.engine.tensor_parallel_size, restarts=config.cluster.max_actor_restarts)


def judge_options(config: RunConfig) -> dict[str, Any]:
    """Return the Ray options of a judge actor."""
    judge = config.reward.judge
    gpus = judge.num_gpus if isinstance(judge, VllmJudge) else 0
    return _options(config, gpus=gpus, restarts=config.cluster.max_actor_restarts)


async def learner_options(config: RunConfig) -> list[dict[str, Any]]:
    """Return the Ray options of each learner rank: on as few nodes as possible, and never restarted on its own.

    Raises:
        RunFailed: the GPUs are in use.
    """
    options = _options(config, gpus=1, restarts=0)
    if config.device == "cpu":
        return [options] * config.learner.num_ranks
    options["runtime_env"]["env_vars"] |= allocator_settings(os.environ)
    group: Any = placement_group([{"GPU": 1, "CPU": 1}] * config.learner.num_ranks, strategy="PACK")
    try:
        async with asyncio.timeout(config.cluster.startup_timeout_s):
            await group.ready()
    except TimeoutError as error:
        raise RunFailed(
            f"learner.num_ranks={config.learner.num_ranks}: the cluster has not given them their GPUs within "
            f"cluster.startup_timeout_s={config.cluster.startup_timeout_s:.0f}; end what uses them, or raise it"
        ) from error
    return [
        {**options, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)}
        for rank in range(config.learner.num_ranks)
    ]


def allocator_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of torch's allocator on a GPU of the learner: the user's, else segments that can grow.

    Rows of ever other lengths would leave holes in segments of a fixed size. Engines keep torch's default: vLLM's sleep
    mode and its transfers of caches refuse segments that grow.
    """
    own = {name: environment[name] for name in ALLOCATOR_VARIABLES if environment.get(name)}
    return own or {ALLOCATOR_VARIABLES[0]: "expandable_segments:True"}


def coordinator_options() -> dict[str, Any]:
    """Return the Ray options of the coordinator."""
    return {"num_cpus": 0, "runtime_env": {"env_vars": blanked_secrets(os.environ)}}


def _options(config: RunConfig, *, gpus: float, restarts: int) -> dict[str, Any]:
    on_cpu = config.device == "cpu"
    return {
        "num_cpus": 0 if on_cpu else 1,
        "num_gpus": 0 if on_cpu else gpus,
        "max_restarts": restarts,
        "max_task_retries": 0,
        "runtime_env": {
            "env_vars": blanked_secrets(os.environ) | (CPU_ENVIRONMENT if on_cpu else {"OMP_NUM_THREADS": "4"})
        },
    }
