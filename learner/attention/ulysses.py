"""Sequence parallelism by exchanging heads for tokens (DeepSpeed-Ulysses, Jacobs et al., 2023).

Between the layers every rank of a group of N holds 1/N of the tokens and all heads; inside attention it holds all
tokens and 1/N of the heads. Attention therefore works on whole rows and needs no change.

Dimensions: `H` heads, `K` key-value heads, `T` tokens of the row, `D` head width, `N` ranks of the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curriculum.errors import UserError
from learner.collectives import all_to_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_heads(num_heads: int, num_kv_heads: int, num_ranks: int) -> None:
    """Check that all ranks get equally many heads, and whole or evenly repeated key-value heads.

    Raises:
        UserError: the ranks cannot share the heads evenly.
    """
    if num_heads % num_ranks or (num_kv_heads % num_ranks and num_ranks % num_kv_heads):
        fitting = [
            n for n in range(1, num_heads + 1) if not num_heads % n and (not num_kv_heads % n or not n % num_kv_heads)
        ]
        raise UserError(
            f"learner.sequence_parallel={num_ranks} does not divide the model's {num_heads} heads and {num_kv_heads} "
            f"key-value heads; use one of {fitting}"
        )


class HeadExchange:
    """The all-to-all of one group of ranks, in both directions, with gradients."""

    def __init__(self, group: ProcessGroup, num_ranks: int) -> None:
        """Take a process group and its size, N."""
        self.group = group
        self.num_ranks = num_ranks

    def to_heads(self, x: Tensor) -> Tensor:
        """Exchange [1, H, T / N, D] of own tokens for [1, H / N, T, D] of own heads.

        Fewer key-value heads than ranks are repeated first, so that each rank gets the one that its queries need.
        """
        repeats = max(1, self.num_ranks // x.shape[1])
        if repeats > 1:
            x = x.repeat_interleave(repeats, dim=1)
        function: Any = _ToHeads
        return function.apply(x, self)

    def to_tokens(self, x: Tensor) -> Tensor:
        """Exchange [1, H / N, T, D] of own heads for [1, H, T / N, D] of own tokens."""
        function: Any = _ToTokens
        return function.apply(x, self)

    def swap_to_heads(self, x: Tensor) -> Tensor:
        """Do what `to_heads` does, without gradient or repetition."""
        parts = torch.unflatten(x.squeeze(0), 0, (self.num_ranks, -1))  # [N, H / N, T / N, D], by receiver
        return all_to_all(parts, self.group).transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def swap_to_tokens(self, x: Tensor) -> Tensor:
        """Do what `to_tokens` does, without gradient."""
        parts = torch.unflatten(x.squeeze(0), 1, (self.num_ranks, -1))
        parts = parts.transpose(0, 1)  # [N, H / N, T / N, D], by receiver
        return all_to_all(parts, self.group).flatten(0, 1).unsqueeze(0)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: HeadExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.swap_to_heads(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.exchange.swap_to_tokens(grad), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: HeadExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.swap_to_tokens(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.exchange.swap_to_heads(grad), None
