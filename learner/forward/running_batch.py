"""The batch that the learner works on: its mini-batches, and their rows that wait for an update.

A batch of B groups comes in slices, in order. It is divided into mini-batches of consecutive groups, one optimizer
update each. The groups of the first one are back-propagated as they come; those of the later ones wait, with their
log-probabilities under the policy before the first update, until the updates before theirs are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatchPart:
    """Consecutive groups of a batch that belong to one mini-batch."""

    mini_batch: int
    """Index of the mini-batch."""
    groups: range
    """Positions of the groups in the batch."""
    mini_batch_groups: int
    """Groups of the whole mini-batch: the normaliser of its loss, known before they are all there."""
    is_last: bool
    """True if the mini-batch ends with these groups."""


def mini_batch_parts(start: int, count: int, *, batch_groups: int, num_mini_batches: int) -> list[MiniBatchPart]:
    """Divide a slice of groups at the ends of mini-batches.

    Args:
        start: groups of the batch that came before the slice.
        count: groups of the slice.
        batch_groups: B, groups of a whole batch.
        num_mini_batches: optimizer updates of a batch; their sizes differ by at most one group.

    Raises:
        ValueError: the batch would have more than `batch_groups` groups.
    """
    end = start + count
    if end > batch_groups:
        raise ValueError(
            f"{count} groups after {start} make more than a batch of groups_per_batch={batch_groups}; update first"
        )
    num_mini_batches = min(num_mini_batches, batch_groups)
    bounds = [batch_groups * i // num_mini_batches for i in range(num_mini_batches + 1)]
    return [
        MiniBatchPart(
            mini_batch=index,
            groups=range(max(start, first), min(end, last)),
            mini_batch_groups=last - first,
            is_last=last <= end,
        )
        for index, (first, last) in enumerate(pairwise(bounds))
        if first < end and last > start
    ]


class MiniBatch:
    """The groups of one optimizer update."""

    def __init__(self, max_groups: int) -> None:
        """Begin without groups; `max_groups` is the number of groups of the whole mini-batch."""
        self.num_groups = 0
        self.max_groups = max_groups
        self.rows: list[tuple[RowTensors, TokenScores]] = []
        """Rows to be back-propagated, with their scores before the first update."""

    @property
    def is_short(self) -> bool:
        """Whether the batch ended before the mini-batch was whole."""
        return self.num_groups < self.max_groups


class RunningBatch:
    """The mini-batches of a batch of which at least one group came."""

    def __init__(self) -> None:
        self.mini_batches: list[MiniBatch] = []

    @property
    def num_groups(self) -> int:
        """Groups that came."""
        return sum(mini_batch.num_groups for mini_batch in self.mini_batches)

    def add(self, part: MiniBatchPart) -> MiniBatch:
        """Count the groups of a part; return their mini-batch.

        Raises:
            ValueError: other groups of the batch come before these.
        """
        if part.mini_batch == len(self.mini_batches):
            self.mini_batches.append(MiniBatch(part.mini_batch_groups))
        if part.groups.start != self.num_groups or part.mini_batch != len(self.mini_batches) - 1:
            raise ValueError(
                f"groups {part.groups.start} to {part.groups.stop - 1} of the batch came, but {self.num_groups} groups "
                "came before; send the slices in order"
            )
        mini_batch = self.mini_batches[-1]
        mini_batch.num_groups += len(part.groups)
        return mini_batch
