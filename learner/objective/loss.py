"""The surrogates of the policy gradient, the KL and the importance weights, on flat token vectors.

Suffixes: `_N` one entry per response token of a micro-batch, `_A` one per answer of it. The loss is the sum over all
micro-batches of all ranks: every token carries a weight that is known before the batch is forwarded, so the result
depends neither on packing nor on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k2", "k3"]


def clipped_policy_loss(
    ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Return [N] the clipped surrogate loss of PPO, -min(ratio * A, clip(ratio) * A), of each token.

    Args:
        ratio_N: pi / pi_old of each token, with gradient; pi_old is the policy before the first update of the batch.
        advantages_N: advantage of the answer that each token belongs to.
        clip_low: the ratio counts as at least 1 - clip_low.
        clip_high: the ratio counts as at most 1 + clip_high.
        dual_clip: the loss of a token with A < 0 is at most dual_clip * |A| (Ye et al., 2020, "Mastering Complex
            Control in MOBA Games with Deep Reinforcement Learning"); None for no bound. It binds no token with A >= 0,
            whose loss is never positive.
    """
    loss_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N)
    return loss_N if dual_clip is None else torch.minimum(loss_N, dual_clip * advantages_N.abs())


def is_clipped(
    ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Return [N] bool: a clip changes the objective of the token, which then gives no gradient.

    Args:
        ratio_N: pi / pi_old of each token.
        advantages_N: advantage of the answer that each token belongs to.
        clip_low: the ratio counts as at least 1 - clip_low.
        clip_high: the ratio counts as at most 1 + clip_high.
        dual_clip: as in `clipped_policy_loss`.
    """
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N < ratio_N * advantages_N
    return clipped_N if dual_clip is None else clipped_N | ((advantages_N < 0) & (ratio_N > dual_clip))


def weighted_policy_loss(logprobs_N: Tensor, ratio_N: Tensor, advantages_N: Tensor, *, clip_high: float) -> Tensor:
    """Return [N] the loss of CISPO, -sg(min(ratio, 1 + clip_high)) * A * log pi, of each token.

    The ratio is a weight without gradient: where it is held, the token still has a gradient, of bounded size (MiniMax,
    2025, "MiniMax-M1", Eq. 4 and 5, whose lower bound is so low that it never acts).

    Args:
        logprobs_N: log pi of each token, with gradient.
        ratio_N: pi / pi_old of each token.
        advantages_N: advantage of the answer that each token belongs to.
        clip_high: the ratio weighs at most 1 + clip_high.
    """
    return -ratio_N.detach().clamp(max=1 + clip_high) * advantages_N * logprobs_N


def answer_ratios(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    answers_N: Tensor,
    *,
    num_answers: int,
    add_up: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return [N] (pi / pi_old)^(1/|y|) of the answer y of each token, without gradient: the ratio of GSPO.

    It is the geometric mean over all tokens of the answer, those that are left out of the loss included (Zheng et al.,
    2025, "Group Sequence Policy Optimization", Eq. 7).

    Args:
        logprobs_N: under the current policy.
        old_logprobs_N: under the policy before the first update of the batch.
        answers_N: [N] int64, the answer of each token.
        num_answers: answers of the row.
        add_up: sums a tensor over the ranks that hold tokens of the same answers.
    """
    log_ratio_N = (logprobs_N - old_logprobs_N).detach()
    everything_N = torch.ones_like(answers_N, dtype=torch.bool)
    mean_A = _answer_means(log_ratio_N, everything_N, answers_N, num_answers, add_up)
    return mean_A.exp()[answers_N].to(log_ratio_N.dtype)


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: KlEstimator) -> Tensor:
    """Return [N] estimates of KL(policy || reference) from the sampled tokens.

    The estimators are those of J. Schulman, "Approximating KL divergence". With d = log(reference / policy):

    * k2 = d^2 / 2: biased, low variance. Over tokens of the policy the mean of its gradient is the gradient of
      KL(policy || reference).
    * k3 = exp(d) - d - 1: unbiased and never negative. The mean of its gradient is that of KL(reference || policy).
    * k1 = -d is left out: unbiased, but the mean of its gradient is zero.

    So k2 is the one to train with where KL(policy || reference) is meant, and k3 the one to report.
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
    log_ratio_N = (proximal_logprobs_N - behaviour_logprobs_N).detach()
    mean_A = _answer_means(log_ratio_N, log_ratio_N.isfinite(), answers_N, num_answers, add_up)
    return (mean_A.abs() <= math.log(max_ratio))[answers_N]  # no comparison keeps NaN


def _answer_means(
    values_N: Tensor, counted_N: Tensor, answers_N: Tensor, num_answers: int, add_up: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return [A] fp64 the mean over the counted tokens of each answer; NaN where it has none."""
    columns = torch.stack((values_N.double().where(counted_N, 0.0), counted_N.double()), dim=1)
    sums = add_up(columns.new_zeros(num_answers, 2).index_add_(0, answers_N, columns))
    return sums[:, 0] / sums[:, 1]
