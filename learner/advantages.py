"""Group-relative advantages (paper Eq. 5): how much better an answer is than the others to the same question.

Suffixes: `_G` one entry per answer of the group.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

STD_EPSILON = 1e-6
"""Added to the standard deviation, as in the authors' code."""


def has_signal(values_G: Sequence[float | None]) -> bool:
    """True if at least two values are known and they are not all equal.

    Dynamic sampling asks this of the accuracies before length shaping, as the authors' filter does.
    """
    known = [value for value in values_G if value is not None]
    return len(known) >= 2 and min(known) < max(known)


def group_advantages(rewards_G: Sequence[float | None]) -> tuple[float | None, ...] | None:
    """(r - mean) / (std + 1e-6), with mean and unbiased standard deviation over the known rewards.

    Args:
        rewards_G: [G] shaped rewards; None where neither the rule nor the judge could tell.

    Returns:
        [G] advantages: None where the reward is unknown (leave the answer out of the group), all zero where the known
        rewards are equal. None instead of a tuple when fewer than two rewards are known: nothing to compare with.
    """
    known = [reward for reward in rewards_G if reward is not None]
    if len(known) < 2:
        return None
    if not has_signal(rewards_G):
        return tuple(None if reward is None else 0.0 for reward in rewards_G)
    mean, std = statistics.fmean(known), statistics.stdev(known)
    return tuple(None if reward is None else (reward - mean) / (std + STD_EPSILON) for reward in rewards_G)
