"""One scored group as the driver holds it: lengths and scores here, tokens in the object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.trajectory import GroupMeta
from curriculum.task import TaskOutcome
from learner.advantages import group_advantages, has_signal
from reward.score import Score


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchGroup:
    """A group with its scores and a reference to its tokens."""

    meta: GroupMeta
    scores: tuple[Score, ...]
    """[G] one per answer."""
    group: Any
    """Reference to the `Group`; opaque to the loop."""

    @property
    def lease_id(self) -> int:
        """Lease that the group answers."""
        return self.meta.lease_id

    @property
    def task_id(self) -> str:
        """Task that the group answers."""
        return self.meta.task_id

    @property
    def accuracies(self) -> tuple[float | None, ...]:
        """[G] accuracy before length shaping; None where unknown."""
        return tuple(score.accuracy for score in self.scores)

    @property
    def known_accuracies(self) -> tuple[float, ...]:
        """Accuracies without the unknown ones."""
        return tuple(accuracy for accuracy in self.accuracies if accuracy is not None)

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """[G] reward after length shaping; None where unknown."""
        return tuple(score.reward for score in self.scores)

    @property
    def advantages(self) -> tuple[float | None, ...]:
        """[G] group-relative advantage; None where unknown."""
        return group_advantages(self.rewards) or (None,) * len(self.scores)

    def trainable(self, *, dynamic_sampling: bool) -> bool:
        """Whether the learner takes it: two known rewards at least and, with dynamic sampling, unequal accuracies."""
        if dynamic_sampling:
            return has_signal(self.accuracies)
        return len(self.known_accuracies) >= 2

    def outcome(self, *, trained: bool) -> TaskOutcome:
        """What the curriculum hears."""
        known = self.known_accuracies
        return TaskOutcome(
            lease_id=self.meta.lease_id,
            task_id=self.meta.task_id,
            accuracies=known,
            num_unknown=len(self.scores) - len(known),
            trained=trained,
        )
