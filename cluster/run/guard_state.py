"""What the guards of a run remember from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class GuardState:
    """What the guards remember; part of every checkpoint."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Steps in a row beyond the threshold, by the text of the rule; rules that are not beyond are left out."""
    good_checkpoint: int | None = None
    """Step of the newest checkpoint whose weights no guard found at fault in the step after it."""
    unproven_checkpoint: int | None = None
    """Step of a later one, until the step after it has been judged."""
    num_roll_backs: int = 0
