"""One scored group as the driver holds it: lengths and scores here, tokens in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.trajectory import GroupMeta
from curriculum.task import TaskOutcome
from learner.advantages import Scale, batch_advantages, has_signal
from learner.batch.microbatch import TrainingItem
from reward.score import Score


@dataclass(slots=True, kw_only=True, eq=False)
class ScoredGroup:
    """A group with its scores and a reference to its tokens; its advantages follow when it is trained on."""

    meta: GroupMeta
    scores: tuple[Score, ...]
    """[G] one per answer."""
    group: Any
    """Reference to the `Group`; opaque to the loop."""
    advantages: tuple[float | None, ...] | None = None
    """[G] advantage with which the learner trains each answer, None where the answer is left out; see
    `assign_advantages`. The whole tuple is None as long as the group is not trained on."""

    @property
    def lease_id(self) -> int:
        """Lease that the group answers."""
        return self.meta.lease.lease_id

    @property
    def task_id(self) -> str:
        """Task that the group answers."""
        return self.meta.lease.task_id

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

    def trainable(self, *, dynamic_sampling: bool, mask_truncated: bool = False) -> bool:
        """Return whether the group can be trained on.

        It needs two known rewards; with dynamic sampling also two different known accuracies; where truncated answers
        are left out, another one whose reward is known.
        """
        if mask_truncated and all(
            truncated or accuracy is None
            for truncated, accuracy in zip(self.meta.truncated, self.accuracies, strict=True)
        ):
            return False
        if dynamic_sampling:
            return has_signal(self.accuracies)
        return len(self.known_accuracies) >= 2

    def training_item(self) -> TrainingItem:
        """Return what the ranks of the learner need to train on the group."""
        assert self.advantages is not None, "call assign_advantages first"
        pairs = zip(self.meta.response_tokens, self.advantages, strict=True)
        return TrainingItem(
            group=self.group,
            advantages=self.advantages,
            prompt_tokens=self.meta.prompt_tokens,
            response_tokens=tuple(tokens for tokens, advantage in pairs if advantage is not None),
        )

    @property
    def outcome(self) -> TaskOutcome:
        """What is reported to the curriculum."""
        return TaskOutcome(
            lease_id=self.lease_id,
            task_id=self.task_id,
            accuracies=self.known_accuracies,
            num_samples=len(self.scores),
        )


def assign_advantages(
    groups: Sequence[ScoredGroup], scale: Scale, *, mask_negatives: bool, mask_truncated: bool = False
) -> None:
    """Compute the advantages that the learner trains with and the run folder keeps.

    Args:
        groups: the next groups of a batch; with `scale="task"` the whole batch.
        scale: see `learner.advantage_scale`.
        mask_negatives: whether the entropy control sets negative advantages to 0 in this step.
        mask_truncated: leave truncated answers out; their rewards count for the others' advantages all the same.

    Raises:
        ValueError: a group has fewer than two known rewards.
    """
    advantages = batch_advantages(
        [group.rewards for group in groups],
        [group.meta.data_source for group in groups],
        scale,
        mask_negatives=mask_negatives,
    )
    for group, advantages_G in zip(groups, advantages, strict=True):
        left_out_G = group.meta.truncated if mask_truncated else (False,) * len(advantages_G)
        pairs = zip(advantages_G, left_out_G, strict=True)
        group.advantages = tuple(None if left_out else advantage for advantage, left_out in pairs)
