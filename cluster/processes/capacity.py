"""Whether the nodes of a cluster have the GPUs of a recipe free: an actor's GPUs must all be on one node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.recipe.config import RunConfig
from cluster.recipe.shared_gpus import shares_gpus, takes_turns
from curriculum.errors import RunFailed
from reward.config import VllmJudge

RELEASE_S, NOTICE_S, POLL_S = 30.0, 10.0, 1.0
"""Longest wait for GPUs that are in use, seconds between two words on it, and between two looks."""
ROUNDING = 1e-6
"""Ray counts shares of a GPU in steps of 1e-4, and a float holds them less than exactly."""

_ray: Any = ray  # where its declarations have no complete types


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Actors of one kind."""

    what: str
    """For messages, with the keys that decide."""
    num_gpus: float
    """Of each actor, on one node."""
    count: int


def demands(config: RunConfig) -> list[Demand]:
    """Return what the actors of a recipe take; nothing with `device: cpu`."""
    if config.device == "cpu":
        return []
    engine, judge = config.rollout.engine, config.reward.judge
    if takes_turns(config):
        what = "GPUs of a learner rank with an engine (learner.num_ranks, cluster.share_gpus=all)"
        return [Demand(what=what, num_gpus=1, count=config.learner.num_ranks)]
    found = [Demand(what="learner ranks (learner.num_ranks)", num_gpus=1, count=config.learner.num_ranks)]
    if shares_gpus(config):
        what = "GPUs of an engine with a judge (rollout.num_actors, cluster.share_gpus=judge)"
        return [*found, Demand(what=what, num_gpus=1, count=config.rollout.num_actors)]
    if config.curriculum.phases:
        keys = f"rollout.num_actors, rollout.engine.tensor_parallel_size={engine.tensor_parallel_size}"
        gpus = engine.tensor_parallel_size
        found.append(Demand(what=f"rollout engines ({keys})", num_gpus=gpus, count=config.rollout.num_actors))
    if config.curriculum.phases and isinstance(judge, VllmJudge):
        keys = f"reward.judge.num_replicas, reward.judge.num_gpus={judge.num_gpus:g}"
        found.append(Demand(what=f"judges ({keys})", num_gpus=judge.num_gpus, count=judge.num_replicas))
    return found


def shortage(demands: Sequence[Demand], free: Mapping[str, float]) -> str | None:
    """Return what does not find its place, None if everything does.

    The largest actors are placed first, each where it leaves the least free: what does not fit then, fits in no order
    where all sizes are powers of two.

    Args:
        demands: the actors.
        free: free GPUs by node.
    """
    left = dict(free)
    for demand in sorted(demands, key=lambda demand: -demand.num_gpus):
        for number in range(demand.count):
            places = [node for node, gpus in left.items() if gpus + ROUNDING >= demand.num_gpus]
            if not places:
                return _short(demand, demands, number, left, free)
            place = min(places, key=lambda node: left[node])
            left[place] -= demand.num_gpus
    return None


def check_capacity(config: RunConfig, say: Callable[[str], None]) -> None:
    """Compare the recipe with what each node has and with what is free there, before any actor starts.

    GPUs that a run before this one is about to give back are waited for, at most `RELEASE_S`.

    Raises:
        RunFailed: an actor finds no place; it names the kind, what it needs, and what is where.
    """
    needed = demands(config)
    if short := shortage(needed, {name: node.total for name, node in _gpus().items()}):
        raise RunFailed(f"device=cuda: {short}; add nodes, lower the counts, or set device=cpu")
    began, next_word = time.monotonic(), 0.0
    while short := shortage(needed, {name: node.free for name, node in _gpus().items()}):
        waited = time.monotonic() - began
        if waited >= RELEASE_S:
            raise RunFailed(f"device=cuda: free of them: {short}; end what uses the others, or lower the counts")
        if waited >= next_word:
            say(f"waiting for GPUs that are in use: {short}")
            next_word += NOTICE_S
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeGpus:
    total: float
    free: float


def _gpus() -> dict[str, _NodeGpus]:
    """Return what Ray counts on each node, by address and the beginning of its id."""
    available = _ray._private.state.available_resources_per_node()
    return {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": _NodeGpus(
            total=node["Resources"].get("GPU", 0.0), free=available.get(node["NodeID"], {}).get("GPU", 0.0)
        )
        for node in _ray.nodes()
        if node["Alive"]
    }


def _short(
    demand: Demand, demands: Sequence[Demand], number: int, left: Mapping[str, float], free: Mapping[str, float]
) -> str:
    needed = sum(one.num_gpus * one.count for one in demands)
    shown = ", ".join(f"{gpus:g} on {node}" for node, gpus in free.items() if gpus) or "none"
    each = "a GPU" if demand.num_gpus == 1 else f"{demand.num_gpus:g} GPUs" if demand.num_gpus > 1 else "a share of one"
    others = " beside the others" if left != dict(free) else ""
    return (
        f"{demand.count} {demand.what} take {each} each, on one node, and {number} of them find a place{others}; the "
        f"recipe needs {needed:g} GPUs in all, there are: {shown}"
    )
