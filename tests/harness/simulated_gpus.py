"""Places the actors of the GPU recipes in a Ray of four nodes with simulated GPUs, and prints where they went.

`python -m tests.harness.simulated_gpus`: one JSON object. Each actor is a stand-in with the options of the real one, so
scheduling is real; no CUDA, no model.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from cluster.processes.placement import actor_options
from cluster.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NODES, GPUS_PER_NODE = 4, 8
SYSTEM = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}


@ray.remote
class StandIn:
    """Knows where it lives."""

    def place(self) -> tuple[str, tuple[int, ...]]:
        return ray.get_runtime_context().get_node_id(), tuple(ray.get_gpu_ids())


def held(num_gpus: int) -> list[Any]:
    """Take GPUs of nodes out of the way, so that `num_gpus` on one node are left."""
    bundles = [{"GPU": GPUS_PER_NODE}] * (NODES - 1)
    if num_gpus < GPUS_PER_NODE:
        bundles.append({"GPU": GPUS_PER_NODE - num_gpus})
    group = placement_group(bundles, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    return [group]


def placed(recipe: str, *, with_ranks: bool) -> dict[str, Any]:
    """Start stand-ins for the actors of a recipe, end them, and return where each was."""
    config = load_recipe(RECIPES / f"{recipe}.yaml", ["cluster.startup_timeout_s=30"])
    options = asyncio.run(actor_options(config))
    kinds = {"engines": options.engines, "judges": options.judges, "ranks": options.ranks if with_ranks else []}
    groups = {one["scheduling_strategy"].placement_group for one in options.ranks}
    groups |= {one["scheduling_strategy"].placement_group for one in options.engines if "scheduling_strategy" in one}
    actors = {kind: [StandIn.options(**_here(one)).remote() for one in own] for kind, own in kinds.items()}
    places = {kind: ray.get([actor.place.remote() for actor in own], timeout=60) for kind, own in actors.items()}
    nodes = [[*placement_group_table(group)["bundles_to_node_id"].values()] for group in groups]
    for own in actors.values():
        for actor in own:
            ray.kill(actor)
    for group in groups:
        remove_placement_group(group)
    return {**places, "nodes of the groups": nodes}


def _here(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what would start another kind of process for each actor: its environment."""
    return {key: value for key, value in options.items() if key != "runtime_env"}


def main() -> None:
    cluster = Cluster()
    for number in range(NODES):
        first = {"include_dashboard": False, "_system_config": SYSTEM} if number == 0 else {}
        cluster.add_node(num_cpus=32, num_gpus=GPUS_PER_NODE, object_store_memory=80 << 20, **first)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    found = {}
    try:
        for recipe, num_gpus in (("one_gpu_1.5b", 1), ("one_node_7b", GPUS_PER_NODE)):
            others = held(num_gpus)
            found[recipe] = placed(recipe, with_ranks=num_gpus == 1)
            for group in others:
                remove_placement_group(group)
        found["qwenlong_l1_32b_dapo"] = placed("qwenlong_l1_32b_dapo", with_ranks=False)
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
