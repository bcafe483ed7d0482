"""The clipped policy-gradient loss and its aggregation, on flat token vectors.

Suffixes: `_N` one entry per response token of a micro-batch, `_G` one per answer of a group. The loss is the sum over
all micro-batches of all ranks: every token carries a weight that is known before the batch is forwarded, so the result
depends neither on packing nor on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["response_mean", "group_token_mean"]
"""`response_mean`: GRPO, mean over answers of the token mean (paper Eq. 4). `group_token_mean`: DAPO, mean over all
tokens of the group (paper Eq. 6). Both are followed by the mean over groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedLoss:
    """Per-token terms; the caller weights and sums them."""

    loss_N: Tensor
    """[N] -min(ratio * A, clip(ratio) * A), with gradient."""
    ratio_N: Tensor
    """[N] pi / pi_old, detached."""
    clipped_N: Tensor
    """[N] bool, the clipped term was strictly the smaller one, so the token gives no gradient."""


def token_weights(response_tokens_G: Sequence[int], aggregation: Aggregation) -> list[float]:
    """[G] weight of each token of each answer; the weights of a group's tokens sum to 1."""
    if aggregation == "group_token_mean":
        total = sum(response_tokens_G)
        return [1 / total] * len(response_tokens_G)
    return [1 / (len(response_tokens_G) * length) for length in response_tokens_G]


def clipped_policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> ClippedLoss:
    """The surrogate of PPO per token, to be minimised.

    Args:
        logprobs_N: log-probabilities (nats) under the policy, with gradient.
        old_logprobs_N: the same under the policy before the first update of the batch.
        advantages_N: advantage of the answer that each token belongs to.
        clip_low: the ratio counts as at least 1 - clip_low.
        clip_high: the ratio counts as at most 1 + clip_high.
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N.detach())
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    return ClippedLoss(
        loss_N=-torch.minimum(free_N, bounded_N),
        ratio_N=ratio_N.detach(),
        clipped_N=(bounded_N < free_N).detach(),
    )


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """[N] estimate of KL(policy || reference) from the sampled tokens (J. Schulman, "Approximating KL divergence").

    With d = log(reference / policy): k1 = -d (unbiased, may be negative), k2 = d^2 / 2 (biased, low variance),
    k3 = exp(d) - d - 1 (unbiased and non-negative).
    """
    delta_N = reference_logprobs_N - logprobs_N
    if estimator == "k1":
        return -delta_N
    if estimator == "k2":
        return delta_N.square() / 2
    return torch.expm1(delta_N) - delta_N
