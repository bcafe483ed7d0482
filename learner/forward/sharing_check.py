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
from learner.batch.packing import GroupPart, MicroBatchPlan
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


def check_rows(plan: MicroBatchPlan, groups: Mapping[int, TrainingGroup]) -> CheckRows:
    """First and last response of the first group of a row; in batches if the row is."""
    if not plan.parts:
        empty = build_microbatch(plan, groups, num_groups=1, aggregation=TOKEN_MEAN)
        alone = build_microbatch(_row(()), groups, num_groups=1, aggregation=TOKEN_MEAN)
        assert isinstance(alone, MicroBatch)
        return CheckRows(shared=empty, dense=alone, num_first=0, num_common=0)
    part = plan.parts[0]
    chosen = sorted({part.responses[0], part.responses[-1]})
    first, last = (GroupPart(group=part.group, responses=(i,)) for i in (chosen[0], chosen[-1]))
    both = GroupPart(group=part.group, responses=tuple(chosen))
    # every rank needs the same number of batches
    batches = ((first,), (last,)) if len(chosen) > 1 else ((first,),)
    batches = (*batches, *[()] * len(plan.batches))[: len(plan.batches)] if plan.batches else ()
    if plan.batches and len(plan.batches) < len(chosen):
        batches = ((both,),)
    shared = build_microbatch(_row((both,), batches), groups, num_groups=1, aggregation=TOKEN_MEAN)
    dense = build_microbatch(_row((last,)), groups, num_groups=1, aggregation=TOKEN_MEAN)
    assert isinstance(dense, MicroBatch)
    lengths = groups[part.group].response_tokens
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


def _row(parts: tuple[GroupPart, ...], batches: tuple[tuple[GroupPart, ...], ...] = ()) -> MicroBatchPlan:
    return MicroBatchPlan(parts=parts, num_tokens=0, cost=0.0, batches=batches)
