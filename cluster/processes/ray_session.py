"""Ray for a run: a cluster that is already running is joined; otherwise one is started, and ended with the run."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import ray

from actors.local_ray import LocalRay, local_ray
from cluster.processes.capacity import check_capacity
from cluster.processes.exposure import exposure
from cluster.processes.nodes import end_at_once
from cluster.processes.placement import required_cpus
from cluster.processes.survey import check_nodes
from cluster.recipe.config import ClusterConfig, RunConfig
from cluster.run.folder import RunFolder
from cluster.run.recovery import RayLost
from curriculum.errors import RunFailed, first_line
from curriculum.files import file_errors

SHUTDOWN_S = 10.0
"""Longest wait for Ray to let this process go."""
FIRST_DASHBOARD_PORT = 8265
NUM_CPUS = 8
"""Logical CPUs of a Ray that is started for a run, if its actors do not reserve more (none with `device: cpu`)."""
JOB_VARIABLE, JOB_STOP_S = "RAY_JOB_CONFIG_JSON_ENV_VAR", "3"
"""What Ray sets for the driver of a submitted job, and how long it waits by default between SIGTERM and SIGKILL."""
SOCKET_TABLES, LISTENING = (Path("/proc/net/tcp"), Path("/proc/net/tcp6")), "0A"
"""Where Linux tells who listens, and how it says so."""


def check_ray(config: RunConfig) -> None:
    """Check the address to join, or the port to open, before anything is written.

    Raises:
        RunFailed: nothing listens at RAY_ADDRESS, or this run would start a Ray whose dashboard port is taken.
    """
    address, port = _address_to_join(config), config.cluster.dashboard_port
    _check_listens(address)
    if not address and port is not None and not _port_is_free(port):
        raise RunFailed(f"cluster.dashboard_port={port}: already in use; choose another or remove the key")


@contextlib.contextmanager
def ray_session(config: RunConfig, folder: RunFolder, say: Callable[[str], None]) -> Generator[None]:
    """Join the Ray of RAY_ADDRESS (as in a submitted job) or a running local one; otherwise start one for this run.

    Raises:
        RunFailed: the Ray to join does not answer, none can be started, or the cluster is too small or
            cannot work.
    """
    with contextlib.ExitStack() as stack:
        if address := _address_to_join(config):
            say(f"joining Ray at {address}")
            url = _init(stack, address, folder.path.name)
            for line in [*_about_joined(url), *unused_keys(config.cluster)]:
                say(line)
        else:
            started = stack.enter_context(_started_here(config, say))
            url = _init(stack, started.address, folder.path.name)
            url = f"{url} (its token is in {started.token_file})"
        if url:
            say(f"Ray dashboard: http://{url}")
        _link_logs(folder)
        check_capacity(config, say)
        check_nodes(config, folder, say)
        yield


@contextlib.contextmanager
def running_ray(say: Callable[[str], None]) -> Generator[str | None]:
    """Join the Ray of RAY_ADDRESS or a running local one, if there is one; start none. Yield its address, or None.

    Raises:
        RunFailed: the Ray of RAY_ADDRESS does not answer.
    """
    with contextlib.ExitStack() as stack:
        address = os.environ.get("RAY_ADDRESS") or _running_address()
        _check_listens(address)
        if address:
            say(f"joining Ray at {address}")
            _init(stack, address, "doctor")
        yield address


def _disconnect(_: object, error: BaseException | None, __: object) -> None:
    """Disconnect this process from Ray.

    When Ray is gone, or a part of it is frozen, Ray's own clean-up would wait for it until Ray ends this process with a
    crash report; then this process ends without that clean-up, with the status that it has.
    """
    if not isinstance(error, RayLost):
        closing = threading.Thread(target=ray.shutdown, daemon=True)
        closing.start()
        closing.join(SHUTDOWN_S)
        if not closing.is_alive():
            return
    status = 0 if error is None else getattr(error, "exit_status", 1)
    atexit.register(end_at_once, status=status)  # the latest runs first


def _about_joined(dashboard: str | None) -> list[str]:
    """Return what a person should know of a Ray that was joined."""
    lines = [exposure(ray.get_runtime_context().gcs_address, dashboard)]
    return [*lines, _time_to_stop()] if JOB_VARIABLE in os.environ else lines


def unused_keys(cluster: ClusterConfig) -> list[str]:
    """Return one line about each setting of a Ray to be started, in a run that joins one."""
    keys = {"dashboard_port": cluster.dashboard_port, "object_store_bytes": cluster.object_store_bytes}
    return [
        f"cluster.{key}={value}: not used, since it is for a Ray that this command starts"
        for key, value in keys.items()
        if value is not None
    ]


def _time_to_stop() -> str:
    """Return what a submitted job should know of its end."""
    seconds = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", JOB_STOP_S)
    return (
        f"`ray job stop` leaves {seconds} s for a checkpoint, then kills the run; set RAY_JOB_STOP_WAIT_TIME_S in the "
        "env_vars of the job's runtime environment if a checkpoint takes longer"
    )


def _started_here(config: RunConfig, say: Callable[[str], None]) -> contextlib.AbstractContextManager[LocalRay]:
    return local_ray(
        say,
        num_cpus=max(NUM_CPUS, required_cpus(config)),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=config.cluster.dashboard_port or _free_port(FIRST_DASHBOARD_PORT),
        object_store_memory=config.cluster.object_store_bytes,
    )


def _init(stack: contextlib.ExitStack, address: str, namespace: str) -> str | None:
    """Connect this process, until the stack is closed; return host:port of the dashboard."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")  # the watch ends a run sooner, in one line
    stack.push(_disconnect)
    try:
        context = ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        wants_token = "AuthenticationError" in str(error.__cause__)
        way_in = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as for its ray start, or " if wants_token else ""
        raise RunFailed(
            f"Ray at {address}: {first_line(error)}; {way_in}unset RAY_ADDRESS or set cluster.address=local to start "
            "one here"
        ) from error
    return context.dashboard_url


def _address_to_join(config: RunConfig) -> str | None:
    return os.environ.get("RAY_ADDRESS") or (_running_address() if config.cluster.address == "auto" else None)


def _running_address() -> str | None:
    """Return the address that `ray start --head` wrote down, if a Ray of this user listens there."""
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if not note.is_file() or note.stat().st_uid != os.getuid():
        return None
    address = note.read_text(encoding="utf-8").strip()
    return address if _listens(address) and _users_at(address) <= {os.getuid()} else None


def _users_at(address: str) -> set[int]:
    """Return the ids of the users whose processes listen at the port of this address; empty where that is not told."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    tables = [table.read_text().splitlines()[1:] for table in SOCKET_TABLES if table.is_file()]
    sockets = [line.split() for lines in tables for line in lines]
    return {int(fields[7]) for fields in sockets if fields[3] == LISTENING and fields[1].endswith(f":{port}")}


def _check_listens(address: str | None) -> None:
    if address and not _listens(address):
        raise RunFailed(
            f"RAY_ADDRESS={address}: nothing listens there; start that Ray, or unset RAY_ADDRESS to start one here"
        )


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
