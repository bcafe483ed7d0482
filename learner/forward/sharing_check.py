"""Self-check of the shared prompt: log-probabilities of one response per rank, compared with the dense path.

The kernels are tested against torch's attention, but a model with code of its own, another version of torch or another
GPU could still break the assumption that attention depends on positions and layout alone. Two rows are compared: a
prompt with two responses, where the first must not influence the second; and the same prompt with the second response
alone, through torch's own attention.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import MicroBatch, TrainingGroup
from learner.batch.packing import PLACEHOLDER, RowPlan
from learner.batch.rows import build_microbatch
from learner.collectives import take_maximum
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, RowTensors

logger = logging.getLogger(__name__)

CHECKED_STEPS = 2
"""First training steps that are checked."""
MAX_MEAN_GAP = {"fp32": 1e-4, "bf16": 5e-2}
"""Mean absolute difference (nats) that rounding can explain; bf16 back ends differ by 0.007 from each other."""


def shared_row(plan: RowPlan, groups: Mapping[int, TrainingGroup]) -> MicroBatch:
    """Return a row with the first and the last response of the first group of a row, in batches if that row is.

    Args:
        plan: of the row; for a placeholder a placeholder is returned.
        groups: the groups of the row, by index in its plan.
    """
    if plan.responses:
        group, *_ = plan.responses
        chosen = tuple(sorted({plan.responses[group][0], plan.responses[group][-1]}))
        batches = tuple({group: (i,)} for i in chosen) if plan.batches else ()
        plan = RowPlan(responses={group: chosen}, batches=batches)
    return build_microbatch(plan, groups, num_groups=1, aggregation=TOKEN_MEAN)


def dense_row(plan: RowPlan, groups: Mapping[int, TrainingGroup]) -> MicroBatch:
    """Return a row with the last response of the first group of a row alone; its labels end those of `shared_row`.

    Args:
        plan: of the row; for a placeholder a placeholder is returned.
        groups: the groups of the row, by index in its plan.
    """
    alone = PLACEHOLDER
    if plan.responses:
        group, *_ = plan.responses
        alone = RowPlan(responses={group: plan.responses[group][-1:]})
    return build_microbatch(alone, groups, num_groups=1, aggregation=TOKEN_MEAN)


def mean_gap(
    shared: tuple[RowTensors, TokenScores], dense: tuple[RowTensors, TokenScores], placement: Placement
) -> float:
    """Return the mean absolute difference (nats) of the labels of both rows, the largest over all ranks. Collective.

    Args:
        shared: `shared_row` with its scores; the labels of `dense_row` are the last ones.
        dense: `dense_row` with its scores.
        placement: of the rows.
    """
    found, expected = gathered_logprobs(*shared, placement), gathered_logprobs(*dense, placement)
    return float(take_maximum((found[-len(expected) :] - expected).abs().mean().nan_to_num(nan=torch.inf)))


def is_rounding(gap: float, dtype: str) -> bool:
    """Return whether rounding in `dtype` explains a mean gap (nats); log what follows where it does not."""
    limit = MAX_MEAN_GAP[dtype]
    if gap <= limit:  # not NaN
        return True
    logger.warning(
        "shared prompts off: log-probabilities differ from the dense path by %.2e nats on average, more than %.0e; "
        "from now on every response is forwarded with its own copy of the prompt",
        gap,
        limit,
    )
    return False


def gathered_logprobs(row: RowTensors, scores: TokenScores, placement: Placement) -> Tensor:
    """Return the log-probabilities of all labels of the row. Collective among the ranks that share it."""
    column = torch.zeros(row.num_labels, dtype=torch.float64, device=placement.device)
    column[row.own_N] = scores.logprobs_N.double()
    return placement.add_up(column)
