"""Who can reach a Ray that a run has joined."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import ray

LOOPBACK_HOSTS = {"127.0.0.1", "::1"}
"""Addresses of a node for which Ray binds no other; with any other one it listens on all of its host."""


def exposure(address: str, dashboard: str | None) -> str:
    """Return a line that says who can reach a Ray that was joined."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    hosts = sorted({node["NodeManagerAddress"] for node in nodes})
    asks_for_token = _asks_for_token(dashboard)
    if set(hosts) <= LOOPBACK_HOSTS:
        return f"Ray at {address} listens on loopback only; authentication: {'token' if asks_for_token else 'disabled'}"
    line = (
        f"Ray at {address} is open to the network of {', '.join(hosts)}: ports "
        f"{', '.join(map(str, _ports(address, dashboard, nodes)))} and one for each process; authentication: "
    )
    if asks_for_token:
        return line + "token"
    return line + "disabled: whoever reaches these ports can run code as this user; see Security in docs/operations.md"


def _ports(address: str, dashboard: str | None, nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    of_nodes = {node[key] for node in nodes for key in node if key.endswith("Port")}
    servers = [server.rpartition(":") for server in (address, dashboard or "")]
    return sorted(of_nodes | {int(port) for host, _, port in servers if host and host not in LOOPBACK_HOSTS})


def _asks_for_token(dashboard: str | None) -> bool:
    """Return whether the cluster refuses a request without a token; without a dashboard, what this process was told."""
    if not dashboard:
        return os.environ.get("RAY_AUTH_MODE") == "token"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{dashboard}/api/version", timeout=5).close()
    except urllib.error.HTTPError as refusal:
        return refusal.code in (401, 403)
    except OSError:
        return os.environ.get("RAY_AUTH_MODE") == "token"
    return False
