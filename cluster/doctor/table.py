"""The nodes of a cluster as a table; what they say of themselves is shown, never obeyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cluster.doctor.facts import NodeFacts
from cluster.doctor.findings import Node, Silent, shown_bytes
from curriculum.printable import printable_lines


def node_table(nodes: Sequence[Node], silent: Sequence[Silent]) -> Table:
    """Return a row for each node, also for those that did not answer."""
    table = Table("node", "versions", "driver and GPUs", "network", "free disk", show_lines=True)
    for node in nodes:
        facts = node.facts
        cells = (facts.name, _versions(facts), _gpus(node), _network(facts), _disks(node))
        table.add_row(*[Text(printable_lines(cell)) for cell in cells])
    for node in silent:
        table.add_row(Text(printable_lines(node.name)), Text("no answer"), "", "", "")
    return table


def _versions(facts: NodeFacts) -> str:
    kind = "for CPUs" if facts.torch_cuda is None else f"for CUDA {facts.torch_cuda}"
    shown = {name: version or "missing" for name, version in facts.versions.items()}
    if facts.versions["torch"] is not None:
        shown["torch"] += f" {kind}"
    shown["flash-attn 3"] = "yes" if facts.has_flash_attention_3 else "no"
    return "\n".join(f"{name} {version}" for name, version in {"python": facts.python, **shown}.items())


def _gpus(node: Node) -> str:
    found = node.facts.gpus
    driver = "no driver" if found.driver is None else f"driver {found.driver}"
    lines = [driver if found.cuda is None else f"{driver}, up to CUDA {found.cuda}"]
    kinds = Counter(
        (gpu.name, shown_bytes(gpu.total_bytes), ".".join(map(str, gpu.capability)), gpu.is_divided)
        for gpu in found.gpus
    )
    for (name, memory, capability, is_divided), count in kinds.items():
        lines.append(f"{count} x {name}, {memory}, capability {capability}{', divided by MIG' if is_divided else ''}")
    if found.gpus:
        lines.append("free: " + ", ".join(shown_bytes(gpu.free_bytes) for gpu in found.gpus))
    if node.ray_gpus is not None:
        lines.append(f"{node.ray_gpus:g} for Ray")
    return "\n".join(lines)


def _network(facts: NodeFacts) -> str:
    network = facts.network
    chosen = "by NCCL_SOCKET_IFNAME" if network.is_named else "by address"
    lines = [f"{network.interface or 'none'} {network.address or ''}", chosen]
    return "\n".join([*lines, *(network.infiniband or ("no InfiniBand",))])


def _disks(node: Node) -> str:
    lines = [
        f"{disk.purpose}: {shown_bytes(disk.free_bytes)} of {shown_bytes(disk.total_bytes)}"
        for disk in node.facts.disks
    ]
    if node.object_store_bytes is not None:
        lines.append(f"object store: {shown_bytes(node.object_store_bytes)}")
    locked = node.facts.locked_memory_bytes
    return "\n".join([*lines, f"ulimit -l: {'unlimited' if locked is None else shown_bytes(locked)}"])
