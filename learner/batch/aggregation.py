"""How the tokens of a group share its weight in the loss; every weight is known before the batch is forwarded.

Where the true weight is known only once the whole mini-batch came, tokens are weighted by a guess, and the gradients
are divided by `normaliser_share` before the optimizer's step.

Suffix: `_G` one entry per answer of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Rule by which the tokens of a group share its weight; followed by the mean over groups, but for `batch`."""

    over: Literal["responses", "tokens", "batch", "constant"]
    """`responses`: GRPO, mean over answers of the token mean (paper Eq. 4). `tokens`: DAPO, mean over all tokens of
    the group (paper Eq. 6). `batch`: mean over all tokens of the mini-batch, whatever the group. `constant`: Dr. GRPO
    (Liu et al., 2025), sum over tokens by answers times a constant."""
    constant_tokens: int | None = None
    """The constant, in tokens; for `constant` only."""

    def __post_init__(self) -> None:
        if (self.over == "constant") != (self.constant_tokens is not None):
            raise ValueError(
                f"aggregation over {self.over} with constant_tokens={self.constant_tokens}; give both or none"
            )


RESPONSE_MEAN = Aggregation(over="responses")
TOKEN_MEAN = Aggregation(over="tokens")
BATCH_MEAN = Aggregation(over="batch")
GUESSED_GROUP_TOKENS = 1 << 14
"""What the tokens of a group are taken for in a mean over the batch until they are counted. Any number gives the same
update; a power of two also rounds nothing."""


def token_weights(response_tokens_G: Sequence[int], aggregation: Aggregation) -> list[float]:
    """Return [G] the weight of each token of each answer in its group.

    Over the tokens of a group they sum to 1, but for `constant` and `batch`.

    Args:
        response_tokens_G: tokens of each answer.
        aggregation: how the tokens share the weight of the group.
    """
    answers = len(response_tokens_G)
    if aggregation.constant_tokens is not None:
        return [1 / (answers * aggregation.constant_tokens)] * answers
    if aggregation.over == "batch":
        return [1 / GUESSED_GROUP_TOKENS] * answers
    if aggregation.over == "tokens":
        return [1 / sum(response_tokens_G)] * answers
    return [1 / (answers * length) for length in response_tokens_G]


def normaliser_share(
    aggregation: Aggregation, *, num_groups: int, max_groups: int, num_tokens: Callable[[], int]
) -> float:
    """Return the normaliser that a mini-batch ought to have, as a share of the one that its weights had.

    Args:
        aggregation: the one that the weights were made with.
        num_groups: groups that came.
        max_groups: groups of the whole mini-batch, by which the weights were divided.
        num_tokens: counts the response tokens that came, on all ranks; called only where it matters.
    """
    if aggregation.over == "batch":
        return num_tokens() / (max_groups * GUESSED_GROUP_TOKENS)
    return num_groups / max_groups
