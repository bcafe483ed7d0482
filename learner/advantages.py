"""Group-relative advantages (paper Eq. 5): how much better an answer is than the others to the same question.

Suffixes: `_G` one entry per answer of the group, `_B` one entry per group of the batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

STD_EPSILON = 1e-6
"""Added to the standard deviation, as in the authors' code."""


def has_signal(values_G: Sequence[float | None]) -> bool:
    """True if at least two values are known and they are not all equal.

    Dynamic sampling asks this of the accuracies before length shaping, as the authors' filter does.
    """
    known = [value for value in values_G if value is not None]
    return len(known) >= 2 and min(known) < max(known)


def batch_advantages(
    rewards_B: Sequence[Sequence[float | None]],
    tasks_B: Sequence[str],
    scale: Literal["group", "task", "none"],
) -> list[tuple[float | None, ...] | None]:
    """Advantages of all groups of a batch.

    Args:
        rewards_B: [B] groups of shaped rewards, None where unknown.
        tasks_B: [B] kind of task of each group.
        scale: what (r - group mean) is divided by: the deviation of the group, that of all known rewards of the same
            kind of task in the batch (QwenLong-L1.5), or nothing (Dr. GRPO).

    Returns:
        [B] see `group_advantages`.
    """
    if scale == "group":
        return [group_advantages(rewards_G) for rewards_G in rewards_B]
    if scale == "none":
        return [_centred(rewards_G, 1.0) for rewards_G in rewards_B]
    known: dict[str, list[float]] = {}
    for rewards_G, task in zip(rewards_B, tasks_B, strict=True):
        known.setdefault(task, []).extend(reward for reward in rewards_G if reward is not None)
    std = {task: statistics.stdev(rewards) if len(rewards) > 1 else 0.0 for task, rewards in known.items()}
    return [_centred(rewards_G, std[task] + STD_EPSILON) for rewards_G, task in zip(rewards_B, tasks_B, strict=True)]


def group_advantages(rewards_G: Sequence[float | None]) -> tuple[float | None, ...] | None:
    """(r - mean) / (std + 1e-6), with mean and unbiased standard deviation over the known rewards.

    Args:
        rewards_G: [G] shaped rewards; None where neither the rule nor the judge could tell.

    Returns:
        [G] advantages: None where the reward is unknown (leave the answer out of the group), all zero where the known
        rewards are equal. None instead of a tuple when fewer than two rewards are known: nothing to compare with.
    """
    known = [reward for reward in rewards_G if reward is not None]
    return _centred(rewards_G, (statistics.stdev(known) if len(known) > 1 else 0.0) + STD_EPSILON)


def _centred(rewards_G: Sequence[float | None], divisor: float) -> tuple[float | None, ...] | None:
    known = [reward for reward in rewards_G if reward is not None]
    if len(known) < 2:
        return None
    if not has_signal(rewards_G):
        return tuple(None if reward is None else 0.0 for reward in rewards_G)
    mean = statistics.fmean(known)
    return tuple(None if reward is None else (reward - mean) / divisor for reward in rewards_G)
