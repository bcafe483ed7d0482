"""Command lines of the product in process groups of their own, and the processes that they leave behind.

Every command gets a marker in its environment, which all its descendants inherit: what carries the marker of a command
belongs to it, and is ended by process id when its workshop is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKER = "QWENLONG_TEST_COMMAND"
START_S, RUN_S = 300.0, 300.0
"""Longest waits, in seconds, for actors to be ready and for a run to end."""


class Command:
    """One command line of the product in a process group of its own."""

    def __init__(self, arguments, *, log: Path, environment=None) -> None:
        self.marker = uuid.uuid4().hex
        self.log = log
        environment = {**os.environ, **(environment or {}), MARKER: self.marker}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_listen_to_interrupts,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = RUN_S) -> int:
        """Exit status; kills everything that is left after the timeout."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.output[-4000:]}") from None

    def wait_for(self, found, what: str, timeout_s: float = START_S, *, poll_s: float = 0.02):
        """Polls `found()` until it is true; the command must stay alive meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"no {what}; exit status {self.process.poll()}:\n{self.output[-4000:]}")
            time.sleep(poll_s)
        return value

    def listeners(self) -> list[tuple[str, int, str]]:
        """Address, port and command line of every socket on which a descendant listens."""
        sockets = _listening_sockets()
        found = []
        for pid, command in self.processes():
            with contextlib.suppress(OSError):
                targets = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
                found += [(*sockets[target], command) for target in targets & sockets.keys()]
        return sorted(found)

    def survivors(self, patience_s: float = 30.0) -> list[str]:
        """Command lines of the descendants that are still there after the patience."""
        deadline = time.monotonic() + patience_s
        while True:
            left = [command for _, command in self.processes()]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def end(self) -> None:
        """Kills whatever carries the marker."""
        for pid, _ in self.processes():
            kill(pid)
        self.process.wait(30)

    def processes(self) -> list[tuple[int, str]]:
        """Process ids and command lines of all that carry the marker."""
        wanted = f"{MARKER}={self.marker}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(folder.name), command))
            except OSError:
                continue  # it ended meanwhile, or is a zombie
        return found


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Address and port by the name that a file descriptor of the socket shows."""
    found = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, _, port = local.partition(":")
            words = bytes.fromhex(address)
            packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))  # words of this machine's order
            if state == "0A":
                found[f"socket:[{inode}]"] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def _listen_to_interrupts() -> None:
    """As in a terminal: a shell that runs the tests in the background hands down an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return attempt.getsockname()[1]
