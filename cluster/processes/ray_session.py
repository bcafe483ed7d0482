"""Ray for a run: a cluster that is already running is joined; otherwise one is started, and ended with the run."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray

from cluster.processes.nodes import end_at_once
from cluster.processes.placement import check_capacity
from cluster.recipe.config import RunConfig
from cluster.run.folder import RunFolder
from cluster.run.recovery import RayLost
from curriculum.errors import RunFailed, first_line
from curriculum.files import file_errors

FIRST_DASHBOARD_PORT = 8265
NUM_CPUS = 8
"""Logical CPUs of a Ray that is started for a run; with `device: cpu` the actors reserve none of them."""


def check_ray(config: RunConfig) -> None:
    """Check the address to join, or the port to open, before anything is written.

    Raises:
        RunFailed: nothing listens at RAY_ADDRESS, or this run would start a Ray whose dashboard port is taken.
    """
    address, port = _address_to_join(config), config.cluster.dashboard_port
    if address and not _listens(address):
        raise RunFailed(
            f"RAY_ADDRESS={address}: nothing listens there; start that Ray, or unset RAY_ADDRESS to start one here"
        )
    if not address and port is not None and not _port_is_free(port):
        raise RunFailed(f"cluster.dashboard_port={port}: already in use; choose another or remove the key")


@contextlib.contextmanager
def ray_session(config: RunConfig, folder: RunFolder, say: Callable[[str], None]) -> Generator[None]:
    """Join the Ray of RAY_ADDRESS (as in a submitted job) or a running local one; otherwise start one for this run.

    Raises:
        RunFailed: the Ray to join does not answer, none can be started, or the cluster is too small.
    """
    address = _address_to_join(config)
    common: dict[str, Any] = {"log_to_driver": False, "namespace": folder.path.name, "logging_level": "ERROR"}
    if address:
        say(f"joining Ray at {address}")
        context = _init(address=address, **common)
    else:
        context = _start_local(config, common)
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")
    _link_logs(folder)
    with contextlib.ExitStack() as stack:
        stack.push(_disconnect)
        check_capacity(config)
        yield


def _disconnect(_: object, error: BaseException | None, __: object) -> None:
    """Disconnect this process from Ray.

    When Ray is gone, Ray's own clean-up would wait for it until Ray ends this process with a crash report. Then only
    the processes that were started here are killed, and this one ends without that clean-up.
    """
    if not isinstance(error, RayLost):
        ray.shutdown()
        return
    ray.get_runtime_context().worker.node.kill_all_processes(check_alive=False, allow_graceful=False)
    atexit.register(end_at_once)  # the latest runs first


def _start_local(config: RunConfig, common: dict[str, Any]) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    return _init(
        address="local",
        num_cpus=NUM_CPUS,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=config.cluster.dashboard_port or _free_port(FIRST_DASHBOARD_PORT),
        object_store_memory=config.cluster.object_store_bytes,
        **common,
    )


def _init(**arguments: Any) -> Any:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")  # the watch ends a run sooner, in one line
    try:
        return ray.init(**arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunFailed(
            f"Ray at {arguments['address']}: {first_line(error)}; unset RAY_ADDRESS or set "
            "cluster.address=local to start one here"
        ) from error


def _address_to_join(config: RunConfig) -> str | None:
    return os.environ.get("RAY_ADDRESS") or (_running_address() if config.cluster.address == "auto" else None)


def _running_address() -> str | None:
    """Return the address that `ray start --head` wrote down, if something listens there."""
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if not note.is_file():
        return None
    address = note.read_text(encoding="utf-8").strip()
    return address if _listens(address) else None


def _listens(address: str) -> bool:
    """Return whether something accepts connections at host:port; true without a port (`auto`), which Ray checks."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _free_port(first: int) -> int:
    return next(port for port in range(first, first + 200) if _port_is_free(port))


def _port_is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return attempt.connect_ex(("127.0.0.1", port)) != 0


def _link_logs(folder: RunFolder) -> None:
    """Link the logs of this Ray session, where every actor writes, into the run folder."""
    session = Path(ray.get_runtime_context().worker.node.get_logs_dir_path())
    link = folder.logs / f"ray-{session.parent.name}"
    with file_errors(link, "written"):
        folder.logs.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(session)
