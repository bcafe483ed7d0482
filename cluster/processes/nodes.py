"""Processes of single nodes: SIGKILL, which stopped processes obey as well, and Ray's own process of this node."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.local_ray import kill_started
from cluster.recipe.config import RunConfig
from curriculum.errors import RunFailed
from curriculum.heartbeat import Heartbeat, kill_processes

_ray: Any = ray  # where its declarations have no complete types


class Beating(Protocol):
    """An actor with its last heartbeat."""

    beat: Heartbeat | None


def kill_on_node(node_id: str, pids: tuple[int, ...]) -> None:
    """Send SIGKILL to processes of a node of the cluster; return at once."""
    if node_id == ray.get_runtime_context().get_node_id():
        kill_processes(pids)
        return
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    _ray.remote(num_cpus=0)(kill_processes).options(scheduling_strategy=place).remote(pids)


def kill_here(actors: Iterable[Beating]) -> None:
    """Send SIGKILL to the actors of this node and their children, without a call of Ray."""
    own_node = ray.get_runtime_context().get_node_id()
    for actor in actors:
        if actor.beat is not None and actor.beat.node_id == own_node:
            kill_processes((actor.beat.pid, *actor.beat.children))


def end_at_once(line: str | None = None, *, status: int = RunFailed.exit_status) -> None:
    """End this process and a Ray that it has started, without any clean-up of Ray's, after a last line."""
    kill_started()
    sys.stdout.flush()
    if line is not None:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
    os._exit(status)


def raylet_listens() -> bool:
    """Return whether Ray's process of this node accepts connections."""
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(_ray.get_runtime_context().worker.node.raylet_socket_name) == 0


def raylet_is_stopped() -> bool:
    """Return whether Ray's process of this node has been stopped, as by SIGSTOP; false where it has ended."""
    with socket.socket(socket.AF_UNIX) as attempt:
        if attempt.connect_ex(_ray.get_runtime_context().worker.node.raylet_socket_name) != 0:
            return False
        pid, _, _ = struct.unpack("3i", attempt.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False  # it has ended


def nodes_for_actors(config: RunConfig) -> dict[str, str]:
    """Return the addresses, by their ids, of the nodes on which actors with a model can be placed."""
    nodes = [node for node in _ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node["Resources"].get("GPU")]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in (with_gpus if config.device == "cuda" else nodes)}


def head_address() -> str:
    """Return host and port of Ray's head."""
    return _ray.get_runtime_context().gcs_address
