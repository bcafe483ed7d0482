"""What is wrong with the nodes of a cluster, each in one line with the way out: a pure function of their facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.doctor.facts import Disk, NodeFacts

CUDA_MAJOR = 13
"""CUDA that the packages of requirements-gpu.lock are built for."""
OLDEST_DRIVER = {12: 525, 13: 580}
"""Oldest driver for each CUDA, from the release notes of the CUDA toolkit: minor versions share one."""
OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first with bf16 in its matrix units, and the first that FlashAttention-2 runs on."""
HOPPER = (9, 0)
"""The first that FlashAttention-3 runs on."""
FULL_SHARE = 0.95
"""Share of a disk in use above which Ray writes no more objects to it."""
SMALL_SHARED_MEMORY = 1 << 30
"""NCCL, gloo and the workers of a vLLM engine exchange through shared memory; a container has 64 MiB by default."""
IDLE_SHARE = 0.9
"""A GPU with a smaller share of free memory is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A node that gave no facts."""

    name: str
    reason: str
    """What it did instead of answering, and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as it sees itself, and as Ray counts it."""

    facts: NodeFacts
    ray_gpus: float | None = None
    """GPUs that Ray hands out there; None without Ray."""
    object_store_bytes: int | None = None
    """Size of Ray's object store there; None without Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is wrong, and what is only worth knowing; one line each."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def findings(
    nodes: Sequence[Node], silent: Sequence[Silent], *, pins: Mapping[str, str], needs_gpu: bool | None
) -> Findings:
    """Judge the nodes of a cluster.

    Args:
        nodes: those that answered; versions are compared with those of the first.
        silent: those that did not.
        pins: the version that each package must have, by its name in `PACKAGES`; others may have any.
        needs_gpu: whether a run needs GPUs; None if that is not known: then only of nodes that were set up for them.
    """
    faults = [f"{node.name}: {node.reason}" for node in silent]
    notes: list[str] = []
    for node in nodes:
        name = node.facts.name
        faults += [f"{name}: {line}" for line in _faults(node, nodes, pins, needs_gpu)]
        notes += [f"{name}: {line}" for line in _notes(node)]
    kinds = {gpu.name for node in nodes for gpu in node.facts.gpus.gpus}
    if len(kinds) > 1:
        notes.append(f"GPUs of different kinds ({', '.join(sorted(kinds))}): the smallest decides what fits")
    return Findings(faults=tuple(faults), notes=tuple(notes))


def gpu_faults(facts: NodeFacts) -> Iterator[str]:
    """Yield why nothing of a run could work with the GPUs of a node: driver, CUDA, the GPUs themselves."""
    cuda, found = facts.torch_cuda, facts.gpus
    if facts.versions["torch"] is not None and cuda is None:
        yield f"torch {facts.versions['torch']} is built for CPUs; install the packages of requirements-gpu.lock"
    elif cuda is not None and _number(cuda) != CUDA_MAJOR:
        yield (
            f"torch is built for CUDA {cuda}, vLLM and the other packages of requirements-gpu.lock for CUDA "
            f"{CUDA_MAJOR}; install those packages"
        )
    needed = OLDEST_DRIVER.get(_number(cuda or ""), OLDEST_DRIVER[CUDA_MAJOR])
    if found.driver is None:
        yield f"no NVIDIA driver; install driver {needed} or newer, or use device: cpu"
    elif _number(found.driver) < needed:
        gives = f" and gives CUDA {found.cuda}" if found.cuda else ""
        yield (
            f"NVIDIA driver {found.driver} is older than {needed}{gives}, too old for packages of CUDA "
            f"{cuda or CUDA_MAJOR}; install driver {needed} or newer"
        )
    if found.fault is not None:
        yield f"{found.fault}; install the packages of requirements-gpu.lock, and look at nvidia-smi on that node"
    elif found.driver is not None and not found.gpus:
        yield "the driver shows no GPU; look at nvidia-smi on that node, or start the container with its GPUs"
    yield from _unusable_gpus(facts)


def _unusable_gpus(facts: NodeFacts) -> Iterator[str]:
    for gpu in facts.gpus.gpus:
        if gpu.is_divided:
            yield (
                f"GPU {gpu.index} ({gpu.name}) is divided by MIG, and NCCL joins no parts of GPUs; turn it off with "
                f"nvidia-smi -i {gpu.index} -mig 0"
            )
        if gpu.capability < OLDEST_CAPABILITY:
            yield (
                f"GPU {gpu.index} ({gpu.name}) has compute capability {_dotted(gpu.capability)}; bf16 and "
                f"FlashAttention need {_dotted(OLDEST_CAPABILITY)}, an A100 or newer"
            )


def _faults(node: Node, nodes: Sequence[Node], pins: Mapping[str, str], needs_gpu: bool | None) -> Iterator[str]:
    facts = node.facts
    yield from _versions(facts, nodes[0].facts, pins)
    if needs_gpu or (needs_gpu is None and (facts.torch_cuda or facts.gpus.driver)):
        yield from gpu_faults(facts)
        if facts.gpus.gpus and not _idle(facts):
            yield "no GPU is free; end what uses them (nvidia-smi names it), or wait for it"
    yield from _network(facts, is_alone=len(nodes) == 1)
    for disk in facts.disks:
        yield from _disk(disk, node.object_store_bytes)
    if facts.network.infiniband and facts.locked_memory_bytes is not None:
        yield (
            f"ulimit -l is {shown_bytes(facts.locked_memory_bytes)}, and InfiniBand needs to lock the memory it sends "
            "from; set memlock to unlimited (/etc/security/limits.conf, or --ulimit memlock=-1 of the container)"
        )


def _versions(facts: NodeFacts, first: NodeFacts, pins: Mapping[str, str]) -> Iterator[str]:
    for name, version in facts.versions.items():
        pin = pins.get(name)
        if version is None:
            yield f"{name} is not installed; install the same environment on every node"
        elif pin is not None and version.partition("+")[0] != pin:
            yield f"{name} is {version}, and {pin} is what this program was tested with; install the lock file"
        elif version != first.versions[name] and first.versions[name] is not None:
            yield (f"{name} is {version}, on {first.name} it is {first.versions[name]}; install the same on every node")
    if facts.python.rpartition(".")[0] != first.python.rpartition(".")[0]:
        yield f"Python is {facts.python}, on {first.name} it is {first.python}; install the same on every node"


def _network(facts: NodeFacts, *, is_alone: bool) -> Iterator[str]:
    network = facts.network
    if network.is_named and network.address is None:
        yield f"NCCL_SOCKET_IFNAME={network.interface}: no such interface with an address; unset or correct it"
    elif network.is_loopback and not is_alone:
        yield (
            f"its interface is {network.interface or 'none'}, which reaches no other node; set NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME to one that does, and start Ray with --node-ip-address"
        )


def _disk(disk: Disk, object_store_bytes: int | None) -> Iterator[str]:
    what = f"{disk.purpose} ({disk.path})"
    if disk.purpose == "shared memory":
        needed = max(SMALL_SHARED_MEMORY, object_store_bytes or 0)
        if disk.total_bytes < needed:
            store = f", Ray's object store alone {shown_bytes(object_store_bytes)}" if object_store_bytes else ""
            yield (
                f"{what} holds {shown_bytes(disk.total_bytes)}, {shown_bytes(SMALL_SHARED_MEMORY)} are needed{store}; "
                "start the container with --shm-size or --ipc=host, or Ray with a smaller --object-store-memory"
            )
    elif disk.free_bytes < (1 - FULL_SHARE) * disk.total_bytes:
        yield (
            f"{what} has {shown_bytes(disk.free_bytes)} of {shown_bytes(disk.total_bytes)} free, and Ray stops writing "
            f"at {FULL_SHARE:.0%}; remove something, or choose another disk (--run-dir, RAY_TMPDIR)"
        )


def _notes(node: Node) -> Iterator[str]:
    facts = node.facts
    gpus = facts.gpus.gpus
    if busy := [str(gpu.index) for gpu in gpus if gpu not in _idle(facts)]:
        yield f"GPU {', '.join(busy)} in use"
    if node.ray_gpus is not None and gpus and node.ray_gpus != len(gpus):
        yield f"Ray hands out {node.ray_gpus:g} of its {len(gpus)} GPUs (--num-gpus, CUDA_VISIBLE_DEVICES)"
    if any(gpu.capability == HOPPER for gpu in gpus) and not facts.has_flash_attention_3:
        yield "FlashAttention-3 is not installed, FlashAttention-2 will run; see docs/operations.md"


def _idle(facts: NodeFacts) -> list[object]:
    return [gpu for gpu in facts.gpus.gpus if gpu.free_bytes >= IDLE_SHARE * gpu.total_bytes]


def _number(version: str) -> int:
    """Return the first number of a version, 0 if it begins with none."""
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def shown_bytes(num: int) -> str:
    """Return a size in GiB, or in MiB below one."""
    return f"{num / (1 << 30):.1f} GiB" if num >= 1 << 30 else f"{num / (1 << 20):.0f} MiB"
