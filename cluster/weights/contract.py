"""The contract of a weight update: what an engine loaded equals what the learner announced, and computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from actors.weights.update import TensorRecord, WeightReceipt, WeightUpdate
from curriculum.errors import RunFailed

MAX_PROBE_GAP = {"fp32": 1e-3, "bf16": 0.1}
"""Mean absolute difference (nats) that rounding can explain. Engine and learner differ by 1e-6 to 5e-5 in fp32 and by
0.01 in bf16; a stale tensor of an update that matters shows as 0.1 to 3."""


class WeightSyncError(RunFailed):
    """An engine holds other weights than the learner sent; training on its answers would be silently wrong."""


def check_receipt(update: WeightUpdate, receipt: WeightReceipt, engine: str) -> None:
    """Compares version and tensors.

    Raises:
        WeightSyncError: naming the engine and the first thing that differs.
    """
    difference = _difference(update, receipt)
    if difference:
        raise WeightSyncError(f"{engine}: {difference} after the weight update; resume from the last checkpoint")


def check_probe(
    learner_logprobs: Sequence[float], engine_logprobs: Sequence[float], *, engine: str, version: int, max_gap: float
) -> float:
    """Compares what the two make of the same tokens under the same weights; returns the mean gap (nats).

    Args:
        learner_logprobs: [T - 1] of the learner.
        engine_logprobs: [T - 1] of the engine.
        engine: name, for people.
        version: of the weights.
        max_gap: largest mean absolute difference (nats) that is accepted.

    Raises:
        WeightSyncError: naming the engine and both means.
    """
    pairs = list(zip(learner_logprobs, engine_logprobs, strict=True))
    gap = fmean(abs(ours - theirs) for ours, theirs in pairs)
    if not gap <= max_gap:  # NaN included
        raise WeightSyncError(
            f"{engine}: after weight update {version} it gives the probe {fmean(engine_logprobs):.4f} nats per token, "
            f"the learner {fmean(learner_logprobs):.4f}; the mean difference {gap:.2e} is "
            f"above {max_gap:.0e}. Every tensor arrived as it was sent, so the engine computes with other values than "
            "it was given, a stale packed copy for instance; resume from the last checkpoint"
        )
    return gap


def _difference(update: WeightUpdate, receipt: WeightReceipt) -> str | None:
    if update.version != receipt.version:
        return f"version={receipt.version}, but the learner sent version={update.version},"
    sent = {tensor.name: tensor for tensor in update.tensors}
    received = {tensor.name: tensor for tensor in receipt.tensors}
    missing, extra = sorted(sent.keys() - received.keys()), sorted(received.keys() - sent.keys())
    changed = sorted(name for name in sent.keys() & received.keys() if sent[name] != received[name])
    if missing:
        return f"{_some(missing)} missing"
    if extra:
        return f"{_some(extra)} not sent by the learner but there"
    if changed:
        return f"{_some(changed)} different from what the learner sent{_why(sent[changed[0]], received[changed[0]])}"
    return None


def _why(sent: TensorRecord, received: TensorRecord) -> str:
    for field in ("dtype", "shape", "num_bytes"):
        ours, theirs = getattr(sent, field), getattr(received, field)
        if ours != theirs:
            return f" ({field}={theirs} instead of {ours})"
    return " (other values)"


def _some(names: list[str]) -> str:
    """`tensor a is` or `tensor a and 3 others are`."""
    return f"tensor {names[0]} is" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} others are"
