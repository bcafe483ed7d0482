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
from learner.rounding import TextScores, largest_gap

logger = logging.getLogger(__name__)

CHECKED_STEPS = 2
"""First training steps that are checked."""


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
    shared: tuple[RowTensors, TokenScores],
    dense: tuple[RowTensors, TokenScores],
    placement: Placement,
    dtype: str,
) -> float:
    """Return the mean absolute difference of the labels of both rows, 1 being the largest that rounding explains.

    The largest over all ranks; infinite where it is no number. Collective.

    Args:
        shared: `shared_row` with its scores; the labels of `dense_row` are the last ones.
        dense: `dense_row` with its scores.
        placement: of the rows.
        dtype: of the model.
    """
    (row, found), (alone, expected) = shared, dense
    ours = gathered(row, found.logprobs_N, placement)
    theirs = gathered(alone, expected.logprobs_N, placement)
    limit = largest_gap(float(gathered(alone, expected.scale_N, placement).mean()), dtype)
    gap = (ours[-len(theirs) :] - theirs).abs().mean()
    return float(take_maximum((gap / limit).nan_to_num(nan=torch.inf)))


def is_rounding(gap: float) -> bool:
    """Return whether rounding explains a gap of `mean_gap`; log what follows where it does not."""
    if gap <= 1:  # not NaN
        return True
    logger.warning(
        "shared prompts off: log-probabilities differ from the dense path by %.3g times what rounding explains; "
        "from now on every response is forwarded with its own copy of the prompt",
        gap,
    )
    return False


def text_scores(row: RowTensors, scores: TokenScores, placement: Placement) -> TextScores:
    """Return the scores of all labels of the row. Collective among the ranks that share it."""
    return TextScores(
        logprobs=tuple(map(float, gathered(row, scores.logprobs_N, placement).cpu())),
        scale=float(gathered(row, scores.scale_N, placement).mean()),
    )


def gathered(row: RowTensors, values_N: Tensor, placement: Placement) -> Tensor:
    """Return a value of each label of the row, in fp64. Collective among the ranks that share it."""
    column = torch.zeros(row.num_labels, dtype=torch.float64, device=placement.device)
    column[row.own_N] = values_N.double()
    return placement.add_up(column)
