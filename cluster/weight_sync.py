"""The contract of a weight update: what an engine received equals what the learner announced."""

from __future__ import annotations

from actors.weight_receiver import WeightReceipt
from learner.weight_sender import WeightAnnouncement


class WeightSyncError(RuntimeError):
    """An engine holds other weights than the learner sent; training on its answers would be silently wrong."""


def check_receipt(announcement: WeightAnnouncement, receipt: WeightReceipt, engine: str) -> None:
    """Compares version, tensors and size.

    Raises:
        WeightSyncError: naming the engine and the first thing that differs.
    """
    difference = _difference(announcement, receipt)
    if difference:
        raise WeightSyncError(f"{engine}: {difference} after the weight update; resume from the last checkpoint")


def _difference(announcement: WeightAnnouncement, receipt: WeightReceipt) -> str | None:
    sent, received = announcement.checksums, receipt.checksums
    missing, extra = sorted(sent.keys() - received.keys()), sorted(received.keys() - sent.keys())
    changed = sorted(name for name in sent.keys() & received.keys() if sent[name] != received[name])
    if announcement.version != receipt.version:
        return f"version={receipt.version}, but the learner sent version={announcement.version},"
    if missing:
        return f"{_some(missing)} missing"
    if extra:
        return f"{_some(extra)} not sent by the learner but there"
    if changed:
        return f"{_some(changed)} different from what the learner sent"
    if announcement.num_bytes != receipt.num_bytes:
        return f"num_bytes={receipt.num_bytes}, but the learner sent num_bytes={announcement.num_bytes},"
    return None


def _some(names: list[str]) -> str:
    """`tensor a is` or `tensor a and 3 others are`."""
    return f"tensor {names[0]} is" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} others are"
