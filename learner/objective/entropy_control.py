"""Adaptive masking of negative answers (AEPO of QwenLong-L1.5): a switch with two thresholds on the policy's entropy.

Answers that are pushed away spread their probability over everything else. While the policy is too uncertain already,
they are left out; once it has calmed down they come back. Between the thresholds the switch stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class EntropySwitch:
    """Decides from the entropy of the last step whether the next one learns from negative answers."""

    high: float
    """nats per token."""
    low: float
    """nats per token."""
    masking: bool = False
    """True while negative answers are left out; part of the checkpoint."""

    def observe(self, entropy: float) -> None:
        """Hear the mean entropy (nats per token) of a step; NaN, a step without an update, changes nothing."""
        if math.isnan(entropy):
            return
        if entropy > self.high:
            self.masking = True
        elif entropy < self.low:
            self.masking = False

    def apply(self, advantages_G: tuple[float, ...]) -> tuple[float, ...]:
        """[G] advantages to learn from: negative ones are 0 while masking. The normaliser of the loss stays."""
        return tuple(max(advantage, 0.0) for advantage in advantages_G) if self.masking else advantages_G
