"""The batch that the learner works on: its mini-batches, and what of them waits for an update.

A batch of B groups comes in slices, in order. It is cut into mini-batches of consecutive groups, one optimizer update
each. The groups of the first one are back-propagated as they come; those of the later ones wait, with their
log-probabilities under the policy before the first update, until the updates before theirs are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Consecutive groups of a batch that belong to one mini-batch."""

    mini_batch: int
    """Index of the mini-batch."""
    groups: range
    """Positions of the groups in the batch."""
    mini_batch_groups: int
    """Groups of the whole mini-batch: the normaliser of its loss, known before they are all there."""
    closes: bool
    """True if the mini-batch ends with these groups."""


def runs(start: int, count: int, *, batch_groups: int, num_mini_batches: int) -> list[Run]:
    """Cut `count` groups from position `start` on where mini-batches end.

    Args:
        start: groups of the batch that came before.
        count: groups of the slice.
        batch_groups: B, groups of a whole batch.
        num_mini_batches: optimizer updates of a batch; their sizes differ by at most one group.

    Raises:
        ValueError: the slice goes beyond the batch.
    """
    end = start + count
    if end > batch_groups:
        raise ValueError(
            f"{count} groups behind {start} make more than a batch of groups_per_batch={batch_groups}; update first"
        )
    num_mini_batches = min(num_mini_batches, batch_groups)
    bounds = [batch_groups * i // num_mini_batches for i in range(num_mini_batches + 1)]
    return [
        Run(
            mini_batch=index,
            groups=range(max(start, first), min(end, last)),
            mini_batch_groups=last - first,
            closes=last <= end,
        )
        for index, (first, last) in enumerate(pairwise(bounds))
        if first < end and last > start
    ]


@dataclass(slots=True, kw_only=True)
class PendingUpdate:
    """One mini-batch on its way to its optimizer update."""

    mini_batch_groups: int
    num_groups: int = 0
    """Groups that are there."""
    rows: list[tuple[Row, list[TokenScores]]] = field(default_factory=list)
    """Rows that have not been back-propagated, with the scores before the first update of each batch of responses."""

    @property
    def share(self) -> float:
        """Of the whole mini-batch; below 1 only where the batch was given up before it was full."""
        return self.num_groups / self.mini_batch_groups


class RunningBatch:
    """Mini-batches of a batch, as far as their groups are there."""

    def __init__(self) -> None:
        self.updates: list[PendingUpdate] = []
        """In order; a mini-batch without any group is not there."""

    @property
    def num_groups(self) -> int:
        """Groups that are there."""
        return sum(update.num_groups for update in self.updates)

    def take(self, run: Run) -> PendingUpdate:
        """Count the groups of a run in; returns their mini-batch."""
        if run.mini_batch == len(self.updates):
            self.updates.append(PendingUpdate(mini_batch_groups=run.mini_batch_groups))
        if run.groups.start != self.num_groups or run.mini_batch != len(self.updates) - 1:
            raise ValueError(
                f"groups {run.groups.start} to {run.groups.stop - 1} of the batch came, but {self.num_groups} are "
                "there; slices come in order"
            )
        update = self.updates[-1]
        update.num_groups += len(run.groups)
        return update
