"""The clipped policy-gradient loss and its aggregation, on flat token vectors.

Suffixes: `_N` one entry per response token of a micro-batch, `_G` one per answer of a group. The loss is the sum over
all micro-batches of all ranks: every token carries a weight that is known before the batch is forwarded, so the result
depends neither on packing nor on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k2", "k3"]


def clipped_policy_loss(ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return [N] the clipped surrogate loss of PPO, -min(ratio * A, clip(ratio) * A), of each token.

    Args:
        ratio_N: pi / pi_old of each token, with gradient; pi_old is the policy before the first update of the batch.
        advantages_N: advantage of the answer that each token belongs to.
        clip_low: the ratio counts as at least 1 - clip_low.
        clip_high: the ratio counts as at most 1 + clip_high.
    """
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N)


def is_clipped(ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return [N] bool: the clip lowers the objective of the token, which then gives no gradient.

    Args:
        ratio_N: pi / pi_old of each token.
        advantages_N: advantage of the answer that each token belongs to.
        clip_low: the ratio counts as at least 1 - clip_low.
        clip_high: the ratio counts as at most 1 + clip_high.
    """
    return ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N < ratio_N * advantages_N


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: KlEstimator) -> Tensor:
    """Return [N] estimates of KL(policy || reference) from the sampled tokens.

    The estimators are those of J. Schulman, "Approximating KL divergence".
    With d = log(reference / policy): k2 = d^2 / 2 (biased, low variance), k3 = exp(d) - d - 1 (unbiased and
    non-negative). k1 = -d is left out: the expectation of its gradient is zero.
    """
    delta_N = reference_logprobs_N - logprobs_N
    if estimator == "k2":
        return delta_N.square() / 2
    return torch.expm1(delta_N) - delta_N


def importance_weights(
    proximal_logprobs_N: Tensor, behaviour_logprobs_N: Tensor, *, cap: float, beyond: Literal["truncate", "mask"]
) -> Tensor:
    """Return [N] pi_proximal / pi_behaviour of every token, without gradient: truncated importance sampling.

    Corrects for answers that were not drawn from the policy at which the ratio is 1, but by another back end, from a
    nucleus, or with older weights (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy
    training").

    Args:
        proximal_logprobs_N: under the learner's policy before the update.
        behaviour_logprobs_N: under the policy that sampled.
        cap: largest weight.
        beyond: `truncate` reduces a larger weight to the cap, `mask` sets it to 0, which leaves the token out.
    """
    weight_N = torch.exp(proximal_logprobs_N - behaviour_logprobs_N).detach()
    if beyond == "truncate":
        return weight_N.clamp(max=cap)
    return torch.where(weight_N <= cap, weight_N, 0.0)


def kept_answers(
    proximal_logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    answers_N: Tensor,
    *,
    num_answers: int,
    max_ratio: float,
    add_up: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return [N] bool: the tokens of answers that are about as likely under the learner's policy as the sampler's.

    An answer is kept if the geometric mean over its tokens of pi_proximal / pi_behaviour lies in
    [1 / max_ratio, max_ratio]. Tokens without a finite ratio do not count; an answer without any other is not kept.

    Args:
        proximal_logprobs_N: under the learner's policy before the update.
        behaviour_logprobs_N: under the policy that sampled.
        answers_N: [N] int64, the answer of each token.
        num_answers: answers of the row.
        max_ratio: bound on the geometric mean, at least 1.
        add_up: sums a tensor over the ranks that hold tokens of the same answers.
    """
    log_ratio_N = (proximal_logprobs_N - behaviour_logprobs_N).detach().double()
    finite_N = log_ratio_N.isfinite()
    columns = torch.stack((log_ratio_N.where(finite_N, 0.0), finite_N.double()), dim=1)
    sums = add_up(columns.new_zeros(num_answers, 2).index_add_(0, answers_N, columns))
    mean_A = sums[:, 0] / sums[:, 1]  # NaN without any token, which no comparison keeps
    return (mean_A.abs() <= math.log(max_ratio))[answers_N]
