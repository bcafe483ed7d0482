"""One update of a group that is larger than memory, without forwarding its prompt more than once.

1. The prompts go forward. Every layer keeps their keys and values; the graph is kept as well.
2. The responses go forward and backward in batches. Each batch leaves its gradients for the prompts' keys and values,
   and for the last state of every prompt, which predicts the first token of each response.
3. The prompts go backward. Every layer adds to the gradients of its keys and values what the responses have left.

The sum over the batches equals one pass over the whole row; the peak is the prompts and the largest batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from learner.attention.shared_prefix import PrefixCache
from learner.forward.logprobs import TokenLoss, TokenScores
from learner.forward.row_tensors import PhasedTensors, RowTensors

Forward = Callable[..., tuple[Tensor, ...]]
"""`Policy.forward`, or a DeepSpeed engine around it."""


def backward_in_phases(
    forward: Forward, backward: Callable[[Tensor, bool], None], row: PhasedTensors, losses: Iterator[TokenLoss]
) -> Iterator[tuple[RowTensors, Tensor, TokenScores]]:
    """Run the three phases; yields each batch of responses with its loss and scores.

    Args:
        forward: of the policy, with gradients on.
        backward: back-propagates a scalar; the flag says whether it is the last one of this row.
        row: the row.
        losses: one loss per batch of responses.
    """
    row = row.with_cache(PrefixCache())
    (states,) = forward(row.prompts)
    leaf = states.detach().requires_grad_()
    for batch, loss in zip(row.batches, losses, strict=True):
        total, *columns = forward(batch, loss, leaf)
        backward(total, False)
        yield batch, total.detach(), TokenScores(*columns)
    if leaf.grad is None:
        raise RuntimeError("no batch of responses has reached the prompts; every phased row needs at least one batch")
    backward((states * leaf.grad).sum(), True)


def score_in_phases(forward: Forward, row: PhasedTensors) -> list[TokenScores]:
    """Scores of every batch of responses; call it without gradients."""
    row = row.with_cache(PrefixCache())
    (states,) = forward(row.prompts)
    return [TokenScores(*forward(batch, None, states)[1:]) for batch in row.batches]
