"""SIGKILL to processes of any node: a stopped process obeys nothing else."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curriculum.heartbeat import kill_processes

_ray: Any = ray  # where its declarations have no complete types


def kill_on_node(node_id: str, pids: tuple[int, ...]) -> None:
    """Send SIGKILL to processes of a node of the cluster; return at once."""
    if node_id == ray.get_runtime_context().get_node_id():
        kill_processes(pids)
        return
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    _ray.remote(num_cpus=0)(kill_processes).options(scheduling_strategy=place).remote(pids)
