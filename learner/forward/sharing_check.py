"""Is the shared prompt exact here? Log-probabilities of one response per rank, against the dense path.

The kernels are tested against torch's attention, but a model with code of its own, another torch or another card could
still break the assumption that positions and layout are all that attention needs. Two rows tell: a prompt with two
responses, where the second must not notice the first, and the same prompt with the second response alone, through
torch's own attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import MicroBatch, PhasedMicroBatch, TrainingGroup
from learner.batch.packing import PLACEHOLDER, RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, RowTensors

CHECKED_STEPS = 2
"""First training steps that are checked."""
MAX_MEAN_GAP = {"fp32": 1e-4, "bf16": 5e-2}
"""Mean absolute difference (nats) that rounding can explain; bf16 back ends differ by 0.007 with each other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckRows:
    """The two rows."""

    shared: MicroBatch | PhasedMicroBatch
    dense: MicroBatch
    num_first: int
    """Labels of the shared row before those of the response that both rows hold."""
    num_common: int
    """Labels that both rows hold."""


def check_rows(plan: RowPlan, groups: Mapping[int, TrainingGroup]) -> CheckRows:
    """First and last response of the first group of a row; in batches if the row is."""
    if not plan.responses:
        empty = build_microbatch(plan, groups, num_groups=1, aggregation=TOKEN_MEAN)
        alone = build_microbatch(PLACEHOLDER, groups, num_groups=1, aggregation=TOKEN_MEAN)
        assert isinstance(alone, MicroBatch)
        return CheckRows(shared=empty, dense=alone, num_first=0, num_common=0)
    group, responses = next(iter(plan.responses.items()))
    chosen = sorted({responses[0], responses[-1]})
    both = {group: tuple(chosen)}
    # every rank needs the same number of batches
    num_batches = len(plan.batches)
    batches = (*[{group: (i,)} for i in chosen], *[{}] * num_batches)[:num_batches]
    if 0 < num_batches < len(chosen):
        batches = (both,)
    shared = build_microbatch(RowPlan(responses=both, batches=batches), groups, num_groups=1, aggregation=TOKEN_MEAN)
    alone = RowPlan(responses={group: (chosen[-1],)})
    dense = build_microbatch(alone, groups, num_groups=1, aggregation=TOKEN_MEAN)
    assert isinstance(dense, MicroBatch)
    lengths = groups[group].response_tokens
    return CheckRows(
        shared=shared,
        dense=dense,
        num_first=lengths[chosen[0]] if len(chosen) > 1 else 0,
        num_common=lengths[chosen[-1]],
    )


def mean_gap(
    shared: Iterable[tuple[RowTensors, TokenScores]],
    dense: Iterable[tuple[RowTensors, TokenScores]],
    rows: CheckRows,
    placement: Placement,
) -> float:
    """Mean absolute difference (nats) of the common labels, the largest over all ranks. Collective."""
    import torch.distributed as dist

    end = rows.num_first + rows.num_common
    first, second = (gathered_logprobs(rows_and_scores, placement) for rows_and_scores in (shared, dense))
    gap = torch.zeros((), dtype=torch.float64, device=placement.device)
    if rows.num_common:
        gap = (first[rows.num_first : end] - second[: rows.num_common]).abs().mean()
        gap = gap.nan_to_num(nan=torch.inf)
    if dist.get_world_size() > 1:
        dist.all_reduce(gap, op=dist.ReduceOp.MAX)
    return float(gap)


def gathered_logprobs(rows_and_scores: Iterable[tuple[RowTensors, TokenScores]], placement: Placement) -> Tensor:
    """Log-probabilities of all labels of the rows, one row after the other, from all ranks that share them."""
    import torch.distributed as dist

    columns = []
    for row, scores in rows_and_scores:
        column = torch.zeros(row.num_labels, dtype=torch.float64, device=placement.device)
        column[row.own_N] = scores.logprobs_N.double()
        if placement.exchange is not None:
            dist.all_reduce(column, group=placement.exchange.group)
        columns.append(column)
    return torch.cat(columns)
