"""Whether weights are numbers at all: what is not finite here was made by the learner, and no engine is at fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curriculum.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteWeights(RunFailed):
    """The learner's weights hold NaN or infinite values; nothing can be sampled or trained with them."""


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. Their sum tells, in one pass and without a copy, unless it overflows."""
    import torch

    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(torch.isfinite(tensor).all())


def check_finite(non_finite: Sequence[str], *, where: str) -> None:
    """Accuse the learner if there are names of tensors with values that are not finite.

    Raises:
        NonFiniteWeights: there are; it names the first one.
    """
    if not non_finite:
        return
    others = f" and {len(non_finite) - 1} others hold" if len(non_finite) > 1 else " holds"
    raise NonFiniteWeights(
        f"learner: {where}: tensor {non_finite[0]}{others} NaN or infinite values, which an update of the learner made "
        "and no engine; lower learner.learning_rate, then go on from the last checkpoint with --resume and "
        "--allow-change learner.learning_rate"
    )
