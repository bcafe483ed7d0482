"""How many GPUs and CPUs each actor takes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.recipe.config import RunConfig
from curriculum.errors import RunFailed
from curriculum.secrets import blanked_secrets
from reward.config import VllmJudge

CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
"""One thread per process: on a small machine the processes share the cores."""


def required_gpus(config: RunConfig) -> float:
    """Return the GPUs of all actors together; 0 with `device: cpu`."""
    if config.device == "cpu":
        return 0
    judge = config.reward.judge
    judges = judge.num_gpus * judge.num_replicas if isinstance(judge, VllmJudge) else 0
    rollouts = config.rollout.num_actors * config.rollout.engine.tensor_parallel_size
    return config.learner.num_ranks + rollouts + judges


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
