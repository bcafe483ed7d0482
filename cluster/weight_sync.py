"""The contract of a weight update: what an engine received equals what the learner announced."""

from __future__ import annotations

from actors.weight_receiver import WeightReceipt
from learner.weight_sender import WeightAnnouncement


class WeightSyncError(RuntimeError):
    """An engine holds other weights than the learner sent; training on its answers would be silently wrong."""


def check_receipt(announcement: WeightAnnouncement, receipt: WeightReceipt, engine: str) -> None:
    """Compares field by field.

    Raises:
        WeightSyncError: naming the engine and the first field that differs.
    """
    for field in ("version", "num_tensors", "num_bytes", "checksum"):
        sent, received = getattr(announcement, field), getattr(receipt, field)
        if sent != received:
            raise WeightSyncError(
                f"{engine}: {field}={received!r} after the update, but the learner sent {field}={sent!r}; "
                "resume from the last checkpoint"
            )
