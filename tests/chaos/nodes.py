"""A Ray of two nodes on this machine, one of which can be lost with everything that it holds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.harness.command import Command, free_port
from tests.harness.workshop import Workshop

RAY = Path(sys.executable).with_name("ray")
STARTED = "Ray runtime started"
IN_PLASMA = {"RAY_max_direct_call_object_size": "1"}
"""Lets small results lie in the object store of the node that made them, as large ones do, instead of in the driver."""


class TwoNodes:
    """A head, which is never harmed, and a node beside it."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self.address = f"127.0.0.1:{free_port()}"
        self._head = self._start("--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false")
        self._node = self._start(f"--address={self.address}")

    @property
    def commands(self) -> list[Command]:
        """What started the processes of the nodes."""
        return [self._head, self._node]

    def lose(self) -> float:
        """Kill every process of the node beside the head at once, as a loss of power does; returns when."""
        now = time.monotonic()
        self._node.end()
        return now

    def replace(self) -> None:
        """Start another node."""
        self._node = self._start(f"--address={self.address}")

    def close(self) -> None:
        """End both."""
        for command in (self._node, self._head):
            command.end()

    def _start(self, *arguments: str) -> Command:
        ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        command = self._shop.run(
            RAY, "start", "--block", "--num-cpus=4", "--object-store-memory=200000000", "--disable-usage-stats",
            *arguments, *(f"--{name}={free_port()}" for name in ports),
            **self._shop.token, **IN_PLASMA,
        )  # fmt: skip
        command.wait_for(lambda: STARTED in command.output, "node of Ray", 90)
        return command
