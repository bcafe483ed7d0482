"""How the tokens of a group share its weight in the loss; every weight is known before the batch is forwarded.

Suffix: `_G` one entry per answer of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Rule by which the tokens of a group share its weight; always followed by the mean over groups."""

    over: Literal["responses", "tokens", "constant"]
    """`responses`: GRPO, mean over answers of the token mean (paper Eq. 4). `tokens`: DAPO, mean over all tokens of
    the group (paper Eq. 6). `constant`: Dr. GRPO (Liu et al., 2025), sum over tokens by answers times a constant."""
    constant_tokens: int | None = None
    """The constant, in tokens; for `constant` only."""

    def __post_init__(self) -> None:
        if (self.over == "constant") != (self.constant_tokens is not None):
            raise ValueError(
                f"aggregation over {self.over} with constant_tokens={self.constant_tokens}; give both or none"
            )


RESPONSE_MEAN = Aggregation(over="responses")
TOKEN_MEAN = Aggregation(over="tokens")


def token_weights(response_tokens_G: Sequence[int], aggregation: Aggregation) -> list[float]:
    """Return [G] the weight of each token of each answer; over the tokens of a group they sum to 1, but for `constant`.

    Args:
        response_tokens_G: tokens of each answer.
        aggregation: how the tokens share the weight of the group.
    """
    answers = len(response_tokens_G)
    if aggregation.constant_tokens is not None:
        return [1 / (answers * aggregation.constant_tokens)] * answers
    if aggregation.over == "tokens":
        return [1 / sum(response_tokens_G)] * answers
    return [1 / (answers * length) for length in response_tokens_G]
