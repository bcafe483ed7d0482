"""How many GPUs and CPUs each actor takes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.recipe.config import RunConfig
from cluster.recipe.shared_gpus import shares_gpus, takes_turns
from curriculum.errors import RunFailed
from curriculum.secrets import blanked_secrets
from reward.config import VllmJudge

CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
"""One thread per process: on a small machine the processes share the cores."""

ENGINE_PART, JUDGE_PART, RANK_PART = 0.5, 0.25, 0.25
"""How Ray's books divide a GPU that is shared. They place actors and do not bound memory, which has its own shares in
`cluster/recipe/shared_gpus.py`."""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocator, by its present and its former name."""


def required_cpus(config: RunConfig) -> int:
    """Return the CPUs that Ray reserves for all actors together; 0 with `device: cpu`."""
    if config.device == "cpu":
        return 0
    num_ranks, num_engines, num_judges = config.learner.num_ranks, config.rollout.num_actors, _num_judges(config)
    if not shares_gpus(config):
        return num_ranks + num_engines + num_judges
    elsewhere = 0 if isinstance(config.reward.judge, VllmJudge) else num_judges
    return elsewhere + (3 * num_ranks if takes_turns(config) else num_ranks + 2 * num_engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """The Ray options of every actor that may have a GPU, in the order of their numbers."""

    engines: Sequence[dict[str, Any]]
    judges: Sequence[dict[str, Any]]
    ranks: Sequence[dict[str, Any]]


async def actor_options(config: RunConfig) -> ActorOptions:
    """Reserve the GPUs that must lie together or are shared; return the options of all actors.

    Learner ranks get as few nodes as possible and are never restarted on their own. Those who share a GPU get parts of
    one bundle of Ray, which is one GPU.

    Raises:
        RunFailed: the GPUs are in use.
    """
    engine, judge, rank = _gpus_of_each(config)
    rank_places, engine_places = await _places(config)
    restarts = config.cluster.max_actor_restarts
    engine_options = _options(config, gpus=engine, restarts=restarts)
    judge_options = _options(config, gpus=judge, restarts=restarts)
    rank_options = _options(config, gpus=rank, restarts=0)
    if config.device == "cuda":
        rank_options["runtime_env"]["env_vars"] |= allocator_settings(os.environ)
    return ActorOptions(
        engines=_placed(engine_options, config.rollout.num_actors, engine_places),
        judges=_placed(judge_options, _num_judges(config), engine_places if judge else None),
        ranks=_placed(rank_options, config.learner.num_ranks, rank_places),
    )


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


def _gpus_of_each(config: RunConfig) -> tuple[float, float, float]:
    """Return the GPUs of an engine, of a judge, and of a learner rank."""
    judge = config.reward.judge
    own = judge.num_gpus if isinstance(judge, VllmJudge) else 0
    if not shares_gpus(config):
        return config.rollout.engine.tensor_parallel_size, own, 1
    return ENGINE_PART, JUDGE_PART if isinstance(judge, VllmJudge) else 0, RANK_PART if takes_turns(config) else 1


async def _places(config: RunConfig) -> tuple[Any, Any]:
    """Return the placement groups of ranks and of engines; None for actors that Ray may place one by one.

    The ranks come first: engines that are already placed would leave them parts of many nodes.
    """
    if config.device == "cpu":
        return None, None
    num_ranks, num_engines = config.learner.num_ranks, config.rollout.num_actors
    ranks = await _reserved(
        config, num_ranks, f"learner.num_ranks={num_ranks}", residents=3 if takes_turns(config) else 1
    )
    if takes_turns(config) or not shares_gpus(config):
        return ranks, ranks if takes_turns(config) else None
    return ranks, await _reserved(config, num_engines, f"rollout.num_actors={num_engines}", residents=2)


async def _reserved(config: RunConfig, num_gpus: int, wanted: str, *, residents: int) -> Any:
    """Reserve GPUs, each with a CPU for every resident, on as few nodes as possible; return Ray's placement group.

    Raises:
        RunFailed: they are in use; it names what is `wanted`.
    """
    group: Any = placement_group([{"GPU": 1, "CPU": residents}] * num_gpus, strategy="PACK")
    try:
        async with asyncio.timeout(config.cluster.startup_timeout_s):
            await group.ready()
    except TimeoutError as error:
        raise RunFailed(
            f"{wanted}: the cluster has not given them their GPUs, with {residents} CPUs for each, within "
            f"cluster.startup_timeout_s={config.cluster.startup_timeout_s:.0f}; end what uses them, or raise it"
        ) from error
    return group


def _placed(options: dict[str, Any], number: int, places: Any) -> list[dict[str, Any]]:
    """Return the options of `number` actors, each in a bundle of its own if there is a placement group."""
    if places is None:
        return [options] * number
    return [
        {**options, "scheduling_strategy": PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=index)}
        for index in range(number)
    ]


def _num_judges(config: RunConfig) -> int:
    judge = config.reward.judge
    return judge.num_replicas if isinstance(judge, VllmJudge) else 1


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
