"""Processes of single nodes: SIGKILL, which stopped processes obey as well, and Ray's own process of this node."""

from __future__ import annotations

import socket
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


def raylet_listens() -> bool:
    """Return whether Ray's process of this node accepts connections."""
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(_ray.get_runtime_context().worker.node.raylet_socket_name) == 0


def head_address() -> str:
    """Return host and port of Ray's head."""
    return _ray.get_runtime_context().gcs_address
