"""A Ray of this machine for one command: closed to the network, with a token of its own, ended with the command."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculum.errors import RunFailed
from curriculum.files import file_errors
from curriculum.secrets import without_secrets

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
}
"""Of Ray and so of every actor. With the first Ray takes the loopback address for its node, on Linux as on macOS."""
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "300"}
"""Seconds that Ray and this process wait for a GCS that is gone; who watches a run ends it sooner, with one line."""
ELSEWHERE = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
"""What would lead to another Ray."""
START_S, NOTICE_S, END_S, FORCE_S = 180.0, 15.0, 3.0, 2.0
"""Seconds: longest wait for the start, until it is mentioned, for an orderly end, and for a forced one."""


_sessions: set[int] = set()
"""Sessions of the Rays that this process has started and not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRay:
    """A Ray that has started."""

    address: str
    """host:port of its GCS."""
    dashboard: str
    """host:port; empty without a dashboard."""
    token_file: Path
    """Holds the token that every connection must show; readable by this user only, gone with Ray."""


@contextlib.contextmanager
def local_ray(say: Callable[[str], None], **arguments: Any) -> Generator[LocalRay]:
    """Start a Ray that only this user can use, let this process join it through `ray.init`, and end it.

    Args:
        say: told when the start takes long.
        **arguments: of `ray.init` in the process that starts it.

    Raises:
        RunFailed: it does not start.
    """
    folder = _private_folder()
    token_file = folder / "token"
    head = _start(head_environment(os.environ, folder, token_file), folder / "head.log", arguments)
    has_started = False
    _sessions.add(head.pid)
    try:
        reply = _reply(head, folder / "head.log", say)
        has_started = True
        _use_token(token_file)
        yield LocalRay(address=reply["address"], dashboard=reply["dashboard"], token_file=token_file)
    finally:
        _end(head, orderly=has_started)
        token_file.unlink(missing_ok=True)


def _private_folder() -> Path:
    """Make a folder for sockets, logs and a token that nobody else may enter; short, since paths of sockets are."""
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    with file_errors(root, "written"):
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir=root))
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(secrets.token_hex(32), encoding="ascii")
    return folder


def head_environment(environment: Mapping[str, str], folder: Path, token_file: Path) -> dict[str, str]:
    """Return the environment of the process that starts Ray, which all actors inherit: without secrets.

    Args:
        environment: of this process.
        folder: where Ray keeps its sockets and logs.
        token_file: holds the token.
    """
    inherited = {key: value for key, value in without_secrets(environment).items() if key not in ELSEWHERE}
    return inherited | PATIENCE | ENVIRONMENT | _token_environment(token_file) | {"RAY_TMPDIR": str(folder)}


def _token_environment(token_file: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def _start(environment: Mapping[str, str], log: Path, arguments: Mapping[str, Any]) -> subprocess.Popen[str]:
    with log.open("w", encoding="utf-8") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "actors.ray_head", json.dumps(arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


def _reply(head: subprocess.Popen[str], log: Path, say: Callable[[str], None]) -> dict[str, str]:
    assert head.stdout is not None
    started = time.monotonic()
    while not select.select([head.stdout], [], [], NOTICE_S)[0]:
        waited = time.monotonic() - started
        if waited > START_S:
            raise RunFailed(f"Ray did not start within {START_S:.0f} s; read {log}, and end what else runs here")
        say(f"waiting for Ray to start ({waited:.0f} s)")
    line = head.stdout.readline()
    reply = json.loads(line) if line else {"error": "its process ended"}
    if "error" in reply:
        raise RunFailed(f"Ray did not start: {reply['error']}; read {log}")
    return reply


def _use_token(token_file: Path) -> None:
    """Let this process show the token, and take a loopback address as it is."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    for key in ELSEWHERE:
        os.environ.pop(key, None)
    os.environ.update(PATIENCE | _token_environment(token_file))
    constants: Any = ray_constants
    constants.ENABLE_RAY_CLUSTER = False  # as in ENVIRONMENT, which Ray reads when it is imported
    Config.initialize("")  # reads the mode again, as ray.init does where it turns authentication on
    AuthenticationTokenLoader.instance().reset_cache()


def _end(head: subprocess.Popen[str], *, orderly: bool) -> None:
    """End Ray with all its processes: ask for it if that is worth the wait, then force what is left."""
    assert head.stdin is not None
    head.stdin.close()
    if orderly:
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(END_S)
    kill_session(head.pid)
    head.wait()
    _sessions.discard(head.pid)


def kill_started() -> None:
    """Kill every Ray that this process has started: for an end without any clean-up."""
    for leader in _sessions:
        kill_session(leader)


def kill_session(leader: int) -> None:
    """Kill every process of a session but this one; Ray gives its workers process groups of their own."""
    deadline = time.monotonic() + FORCE_S
    while (others := _session(leader) - {os.getpid()}) and time.monotonic() < deadline:
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # one of them may have been just about to start another


def _session(leader: int) -> set[int]:
    """Return the process ids of a session, without those that have ended; none where there is no /proc."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in ("Z", "X"):
                found.add(int(entry.parent.name))
    return found
