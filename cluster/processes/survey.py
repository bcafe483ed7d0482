"""The facts of every node of a Ray, each told by one short task on that node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor.facts import NodeFacts, node_facts
from cluster.doctor.findings import Node, Silent, findings, gpu_faults
from cluster.doctor.gpus import smallest_card
from cluster.doctor.pins import pinned_versions
from cluster.recipe.cards import check_cards
from cluster.recipe.config import RunConfig
from cluster.run.folder import RunFolder
from curriculum.errors import RunFailed, one_line

ANSWER_S = 60.0
"""Longest wait for a node: a process starts there and imports this program."""
NOTICE_S = 10.0
"""Seconds between two words on nodes that have not answered."""

_ray: Any = ray  # where its declarations have no complete types


def survey(
    run_folder: str,
    say: Callable[[str], None],
    *,
    only_with_gpus: bool = False,
    answer_s: float = ANSWER_S,
    ask: Callable[[str, str | None], NodeFacts] = node_facts,
) -> tuple[list[Node], list[Silent]]:
    """Ask the nodes of the Ray that this process has joined; the node of this process comes first.

    Args:
        run_folder: where a run writes.
        say: is told of nodes that take long.
        only_with_gpus: leave out nodes on which Ray counts no GPU, where no actor with a model will run.
        answer_s: longest wait, in seconds.
        ask: runs on every node, with `run_folder` and the address of the node.
    """
    own = ray.get_runtime_context().get_node_id()
    alive = [node for node in _ray.nodes() if node["Alive"]]
    asked = [node for node in alive if not only_with_gpus or node["Resources"].get("GPU", 0)]
    asked.sort(key=lambda node: (node["NodeID"] != own, node["NodeManagerAddress"]))
    task = _ray.remote(num_cpus=0, max_retries=0)(ask)
    replies = [task.options(scheduling_strategy=_on(node)).remote(run_folder, _address(node)) for node in asked]
    _wait(replies, asked, say, answer_s)
    nodes: list[Node] = []
    silent: list[Silent] = []
    for node, reply in zip(asked, replies, strict=True):
        answer = _answer(reply, node, answer_s)
        if isinstance(answer, Silent):
            silent.append(answer)
        else:
            resources = node["Resources"]
            store = int(resources.get("object_store_memory", 0)) or None
            nodes.append(Node(facts=answer, ray_gpus=resources.get("GPU", 0), object_store_bytes=store))
    return nodes, silent


def check_nodes(config: RunConfig, folder: RunFolder, say: Callable[[str], None]) -> None:
    """With `device: cuda`, have every node with GPUs tell what is there, before a model is loaded.

    What would only make a run slower or may fail later is said, not refused.

    Raises:
        RunFailed: driver, CUDA or GPUs of a node cannot be used, a node does not answer, or a card is too small.
    """
    if config.device == "cpu":
        return
    nodes, silent = survey(str(folder.path), say, only_with_gpus=True)
    faults = [f"{node.facts.name}: {fault}" for node in nodes for fault in gpu_faults(node.facts)]
    faults += [f"{node.name}: {node.reason}" for node in silent]
    if faults:
        raise RunFailed(*faults)
    check_cards(config, smallest_card(node.facts.gpus for node in nodes))
    found = findings(nodes, silent, pins=pinned_versions(), needs_gpu=False)
    for line in (*found.faults, *found.notes):
        say(f"note: {line}")


def _wait(replies: Sequence[Any], nodes: Sequence[Any], say: Callable[[str], None], answer_s: float) -> None:
    """Wait until all have answered or the time is over; say every `NOTICE_S` who has not."""
    waited = 0.0
    missing = list(replies)
    while missing and waited < answer_s:
        step = min(NOTICE_S, answer_s - waited)
        _, missing = _ray.wait(missing, num_returns=len(missing), timeout=step)
        waited += step
        if missing and waited < answer_s:
            names = [_address(node) for node, reply in zip(nodes, replies, strict=True) if reply in missing]
            say(f"waiting for {', '.join(map(str, names))} to tell what is there, for {waited:.0f} s")


def _answer(reply: Any, node: Any, answer_s: float) -> NodeFacts | Silent:
    name = f"{node['NodeManagerHostname']} ({_address(node)})"
    done, _ = _ray.wait([reply], timeout=0)
    if not done:
        _ray.cancel(reply, force=True)
        way_out = "look with `ray status` whether it is alive, and at the raylet's log there"
        return Silent(name=name, reason=f"no answer within {answer_s:.0f} s; {way_out}")
    try:
        return ray.get(reply)
    except RayError as error:
        reason = f"cannot tell what is there: {one_line(error)}; install the same environment on every node"
        return Silent(name=name, reason=reason)


def _on(node: Any) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _address(node: Any) -> str:
    return node["NodeManagerAddress"]
