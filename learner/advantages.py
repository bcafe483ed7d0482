"""Group-relative advantages (paper Eq. 5): how much better an answer is than the others to the same question.

The driver computes them once, from the rewards and the configured scale, and the learner trains on exactly these
numbers. Suffixes: `_G` one entry per answer of the group, `_B` one entry per group of the batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

Scale = Literal["group", "task", "none"]
"""What (r - group mean) is divided by: the standard deviation of the group, that of all known rewards of the same kind
of task in the batch (QwenLong-L1.5), or nothing (Dr. GRPO)."""
STD_EPSILON = 1e-6
"""Added to the standard deviation, as in the authors' code."""


def has_signal(values_G: Sequence[float | None]) -> bool:
    """Return whether at least two values are known and they are not all equal.

    Dynamic sampling applies it to the accuracies before length shaping, as the authors' filter does.
    """
    known = [value for value in values_G if value is not None]
    return len(known) >= 2 and min(known) < max(known)


def batch_advantages(
    rewards_B: Sequence[Sequence[float | None]],
    tasks_B: Sequence[str],
    scale: Scale,
    *,
    mask_negatives: bool = False,
) -> list[tuple[float | None, ...]]:
    """Compute the advantages of all groups of a batch, or of a slice of it where the scale does not need the batch.

    Args:
        rewards_B: [B] groups of shaped rewards, None where unknown.
        tasks_B: [B] kind of task of each group.
        scale: what (r - group mean) is divided by.
        mask_negatives: set negative advantages to 0 (`masks_negatives`); the normaliser of the loss stays.

    Returns:
        [B] see `group_advantages`.

    Raises:
        ValueError: a group has fewer than two known rewards.
    """
    if scale == "group":
        advantages = [group_advantages(rewards_G) for rewards_G in rewards_B]
    elif scale == "none":
        advantages = [_centred(rewards_G, 1.0) for rewards_G in rewards_B]
    else:
        std = _deviations(rewards_B, tasks_B)
        pairs = zip(rewards_B, tasks_B, strict=True)
        advantages = [_centred(rewards_G, std[task] + STD_EPSILON) for rewards_G, task in pairs]
    return [_without_negatives(advantages_G) for advantages_G in advantages] if mask_negatives else advantages


def group_advantages(rewards_G: Sequence[float | None]) -> tuple[float | None, ...]:
    """Compute (r - mean) / (std + 1e-6), with mean and unbiased standard deviation over the known rewards.

    Args:
        rewards_G: [G] shaped rewards; None where neither the rule nor the judge reached a verdict.

    Returns:
        [G] advantages: None where the reward is unknown (leave the answer out of the group), all zero where the known
        rewards are equal.

    Raises:
        ValueError: fewer than two rewards are known, so there is nothing to compare.
    """
    return _centred(rewards_G, _deviation([reward for reward in rewards_G if reward is not None]) + STD_EPSILON)


def masks_negatives(masked: bool, entropy: float, *, high: float, low: float) -> bool:
    """Return whether the next step leaves answers with negative advantage out (AEPO of QwenLong-L1.5).

    A negative advantage lowers the probability of an answer and spreads it over all other answers, which raises the
    entropy. Such answers are left out while the entropy is too high, and trained on again once it has fallen.

    Args:
        masked: whether the last step left them out; this does not change between the thresholds.
        entropy: mean of the last step, nats per token; NaN, a step without an update, changes nothing.
        high: entropy above which they are left out.
        low: entropy below which they are trained on again.
    """
    return entropy > high or (masked and not entropy < low)


def _deviations(rewards_B: Sequence[Sequence[float | None]], tasks_B: Sequence[str]) -> dict[str, float]:
    """Return the standard deviation of all known rewards of each kind of task."""
    known: dict[str, list[float]] = {}
    for rewards_G, task in zip(rewards_B, tasks_B, strict=True):
        known.setdefault(task, []).extend(reward for reward in rewards_G if reward is not None)
    return {task: _deviation(rewards) for task, rewards in known.items()}


def _deviation(rewards: Sequence[float]) -> float:
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0


def _centred(rewards_G: Sequence[float | None], divisor: float) -> tuple[float | None, ...]:
    known = [reward for reward in rewards_G if reward is not None]
    if len(known) < 2:
        raise ValueError(f"rewards {list(rewards_G)}: fewer than two are known; leave the group out of the batch")
    if not has_signal(rewards_G):
        return tuple(None if reward is None else 0.0 for reward in rewards_G)
    mean = statistics.fmean(known)
    return tuple(None if reward is None else (reward - mean) / divisor for reward in rewards_G)


def _without_negatives(advantages_G: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if advantage is None else max(advantage, 0.0) for advantage in advantages_G)
