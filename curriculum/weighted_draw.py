"""Draws from many weights that change one at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FAN_OUT = 256
"""Weights, or sums of the level below, that one sum is taken over."""


class WeightedDraw:
    """Weights and their sums, the sums of these, and so on: a draw or a change looks at one block of each level.

    Weights are integers, so sums are exact, and what is found depends on the weights only, not on the order in which
    they changed.

    Args:
        weights_N: [N] weights >= 0; their sum is below 2**63. Not copied.
    """

    def __init__(self, weights_N: NDArray[np.int64]) -> None:
        self._levels = [weights_N]
        while len(self._levels[-1]) > FAN_OUT:
            below = self._levels[-1]
            self._levels.append(np.add.reduceat(below, np.arange(0, len(below), FAN_OUT)))

    @property
    def total(self) -> int:
        """Sum of all weights."""
        return int(self._levels[-1].sum())

    def set(self, index: int, weight: int) -> None:
        """Change one weight."""
        change = weight - int(self._levels[0][index])
        for level in self._levels:
            level[index] += change
            index //= FAN_OUT

    def find(self, position: int) -> int:
        """Return the index whose weight covers a position from 0 to `total` - 1, all weights laid end to end."""
        index = 0
        for level in reversed(self._levels):
            start = index * FAN_OUT
            ends = np.cumsum(level[start : start + FAN_OUT])
            offset = int(np.searchsorted(ends, position, side="right"))
            position -= int(ends[offset - 1]) if offset else 0
            index = start + offset
        return index
