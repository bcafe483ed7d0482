"""The record that waits between the learner's part of a weight update and the engines'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.weights.update import WeightUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """New weights that wait to be delivered."""

    update: WeightUpdate
    """For engines on the host of learner rank 0."""
    payload: Any
    """`ray.ObjectRef` of a `WeightPayload` for engines elsewhere; None if there were none."""
    probe_logprobs: tuple[float, ...] | None
    """[T - 1] what the learner makes of the probe's tokens (nats); None where it was not asked."""
    gather_s: float
    """The learner's ranks were busy."""
    write_s: float
    """Of it, copying gathered tensors into the segment."""
    num_travelling_bytes: int
    """Size of the payload; 0 without one."""
