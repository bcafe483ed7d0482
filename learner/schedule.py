"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_at(
    step: int,
    total_steps: int | None,
    *,
    peak: float,
    warmup_steps: int = 0,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    floor: float = 0.0,
) -> float:
    """Return the learning rate of one update.

    Args:
        step: index of the update, from 0; the first of w warm-up steps runs at peak / w.
        total_steps: updates of the whole stage, warm-up included; None is enough for `constant`.
        peak: learning rate at the end of the warm-up.
        warmup_steps: w, updates of linear growth.
        schedule: `linear` and `cosine` fall from the peak to `floor * peak` at `total_steps` and stay there.
        floor: lowest share of the peak.

    Raises:
        ValueError: `linear` or `cosine` without `total_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    if total_steps is None:
        raise ValueError(f"learner.schedule={schedule} needs the number of steps in advance; use schedule=constant")
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    share = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (floor + (1 - floor) * share)
