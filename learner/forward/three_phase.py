"""One update of a group that does not fit into memory, without forwarding its prompt more than once.

1. Forward pass of the prompts. Every layer keeps their keys and values; the graph is kept as well.
2. Forward and backward pass of the responses, in batches. Each batch adds its gradients for the keys and values of the
   prompts, and for the last state of every prompt, which predicts the first token of each response. These are summed
   up in fp32, also for a bf16 model.
3. Backward pass of the prompts. Every layer adds the gradients from the responses to those of its keys and values.

The sum over the batches equals one pass over the whole row; the peak memory is that of the prompts and the largest
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from learner.forward.logprobs import TokenLoss, TokenScores
from learner.forward.row_tensors import PhasedTensors, RowTensors

Forward = Callable[..., tuple[Tensor, ...]]
"""`Policy.forward`, or a DeepSpeed engine around it."""


def backward_in_phases(
    forward: Forward, backward: Callable[[Tensor, bool], None], row: PhasedTensors, losses: Iterator[TokenLoss]
) -> Iterator[tuple[RowTensors, Tensor, TokenScores]]:
    """Run the three phases; yield each batch of responses with its loss and scores.

    Args:
        forward: of the policy, with gradients on.
        backward: back-propagates a scalar; the flag says whether it is the last one of this row.
        row: the row.
        losses: one loss per batch of responses.

    Raises:
        RuntimeError: no response attends to a prompt.
    """
    row = row.with_new_cache()
    (states,) = forward(row.prompts)
    leaf = states.detach().requires_grad_()
    wide = torch.promote_types(states.dtype, torch.float32)
    sum_SH: Tensor | None = None
    for batch, loss in zip(row.batches, losses, strict=True):
        total, *columns = forward(batch, loss, leaf)
        backward(total, False)
        if leaf.grad is not None:
            sum_SH = leaf.grad.to(wide) if sum_SH is None else sum_SH + leaf.grad
            leaf.grad = None
        yield batch, total.detach(), TokenScores(*columns)
    if sum_SH is None:
        raise RuntimeError("the prompts have no gradient from any batch of responses; give the row at least one batch")
    backward((states * sum_SH).sum(), True)


def score_in_phases(forward: Forward, row: PhasedTensors) -> list[TokenScores]:
    """Score every batch of responses; call it with gradients off."""
    row = row.with_new_cache()
    (states,) = forward(row.prompts)
    return [TokenScores(*forward(batch, None, states)[1:]) for batch in row.batches]
