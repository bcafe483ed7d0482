"""Network of this node: the interface that NCCL and gloo will take, and InfiniBand beside it."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

INFINIBAND = Path("/sys/class/infiniband")
_GET_ADDRESS = 0x8915
"""The request SIOCGIFADDR of Linux: the IPv4 address of an interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the ranks of this node talk through."""

    interface: str | None
    """Interface for NCCL's sockets; None if none was found."""
    address: str | None
    """Its IPv4 address; None without one."""
    is_named: bool
    """Whether NCCL_SOCKET_IFNAME names it."""
    infiniband: tuple[str, ...] = ()
    """Devices with an active port and their rate, like `mlx5_0 400 Gb/sec (4X NDR)`."""

    @property
    def is_loopback(self) -> bool:
        """Whether nothing outside this node can be reached through it."""
        return self.address is None or self.address.startswith("127.")


def read_network(address: str | None, named: str | None, *, infiniband: Path = INFINIBAND) -> Network:
    """Return the interface that carries traffic between nodes.

    NCCL takes the interface that NCCL_SOCKET_IFNAME names; without it, it avoids loopback, so that the interface which
    carries the address of the node is the one to expect.

    Args:
        address: of this node in its cluster; None to take the one with the way out of this machine.
        named: value of NCCL_SOCKET_IFNAME: beginnings of names, after `=` whole names, after `^` those to avoid.
        infiniband: folder of the devices.
    """
    addresses = {name: _address(name) for _, name in socket.if_nameindex()}
    if named and not named.startswith("^"):
        wanted = named.removeprefix("=").split(",")
        matching = [name for name in addresses if _matches(name, wanted, exactly=named.startswith("="))]
        chosen = next((name for name in matching if addresses[name]), next(iter(matching), None))
        return Network(
            interface=chosen or named,
            address=addresses.get(chosen or ""),
            is_named=True,
            infiniband=_active(infiniband),
        )
    own = address or _way_out()
    chosen = next((name for name, held in addresses.items() if held == own), None)
    return Network(interface=chosen, address=own, is_named=False, infiniband=_active(infiniband))


def _matches(name: str, wanted: list[str], *, exactly: bool) -> bool:
    return any(name == word if exactly else name.startswith(word) for word in wanted)


def _address(interface: str) -> str | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(asking.fileno(), _GET_ADDRESS, request)[20:24])
    return None


def _way_out() -> str | None:
    """Return the address that this machine would send from; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 9))  # an address of documentation (RFC 5737): only the way to it is looked up
        return asking.getsockname()[0]
    return None


def _active(folder: Path) -> tuple[str, ...]:
    """Return the devices with a port that is up."""
    found: list[str] = []
    for port in sorted(folder.glob("*/ports/*")):
        with contextlib.suppress(OSError):
            if "ACTIVE" in (port / "state").read_text():
                found.append(f"{port.parent.parent.name} {(port / 'rate').read_text().strip()}")
    return tuple(found)
