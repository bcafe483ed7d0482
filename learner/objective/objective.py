"""The losses of the tokens of one row, as callbacks that `logprobs.token_loss` calls tile by tile.

`_N` response tokens of the row, `_n` tokens of one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors
from learner.objective.loss import (
    KlEstimator,
    answer_ratios,
    clipped_policy_loss,
    importance_weights,
    is_clipped,
    kept_answers,
    kl_estimate,
    weighted_policy_loss,
)

Surrogate = Literal["ppo", "gspo", "cispo"]
"""`ppo`: the ratio of a token, clipped. `gspo`: the ratio of its answer, clipped. `cispo`: the ratio of a token as a
weight, held from above."""

TOKEN_SUMS = (
    "clip_fraction",
    "mean_ratio",
    "kl_to_reference",
    "masked_fraction",
    "outside_nucleus",
    "importance_weight",
    "log_nucleus",
    "clip_low_fraction",
    "clip_high_fraction",
)
"""Fields of `StepReport` whose sums over the tokens of a row a `PolicyLoss` collects, in the order of its `sums`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Parameters of the policy loss."""

    surrogate: Surrogate = "ppo"
    clip_low: float
    """Infinite for `cispo`, whose weights are not held from below."""
    clip_high: float
    dual_clip: float | None = None
    """For `ppo` only."""
    kl_coefficient: float = 0.0
    kl_estimator: KlEstimator = "k2"
    """Term of the loss; the sums hold k3, which estimates the same KL without bias."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus, which is subtracted from the loss."""
    importance_cap: float | None = None
    """Cap of the truncated importance sampling between sampler and learner; None applies no weights."""
    importance_beyond: Literal["truncate", "mask"] = "truncate"
    max_answer_ratio: float | None = None
    """Bound beyond which an answer is left out, see `kept_answers`; None keeps all. Needs the old scores."""


class SftLoss:
    """Weighted negative log-likelihood of one row."""

    def __init__(self, row: RowTensors) -> None:
        self._row = row

    def __call__(self, tokens: slice, scores: TokenScores) -> Tensor:
        """Return the weighted loss of each of these tokens, as `learner.forward.logprobs.TokenLoss` defines it."""
        return -self._row.weights_N[tokens] * scores.logprobs_N


class PolicyLoss:
    """Surrogate, importance correction, KL and entropy bonus of one row, with the sums for the report.

    A token counts if the sampler reported a finite log-probability for it and its answer is kept; with an importance
    correction the learner's own nucleus must contain it as well, since its importance weight is 0 otherwise. All others
    have weight zero. The normaliser of the loss does not change, so leaving tokens out never scales up the others.
    """

    def __init__(
        self,
        row: RowTensors,
        objective: Objective,
        *,
        old: TokenScores | None,
        reference_N: Tensor | None,
        kept_N: Tensor | None = None,
    ) -> None:
        """Take what the loss of every tile needs.

        Args:
            row: the row.
            objective: parameters of the loss.
            old: scores under the policy before the first update of the batch; None while it is the current one.
            reference_N: [N] log-probabilities under the reference policy; None without one.
            kept_N: [N] bool, tokens of answers that are kept; None for all.
        """
        self._row = row
        self._objective = objective
        self._old = old
        self._reference_N = reference_N
        self._kept_N = kept_N
        self.sums = torch.zeros(len(TOKEN_SUMS), dtype=torch.float64, device=row.labels_N.device)
        """Sums over the tokens, one for each name in `TOKEN_SUMS`; complete after the last tile."""

    def __call__(self, tokens: slice, scores: TokenScores) -> Tensor:
        """Return the weighted loss of each of these tokens, as `learner.forward.logprobs.TokenLoss` defines it."""
        row, objective = self._row, self._objective
        old = _detached(scores) if self._old is None else TokenScores(*(column[tokens] for column in self._old))
        rollout_n = row.rollout_logprobs_N[tokens]
        inside_n = old.inside_N > 0
        used_n = rollout_n.isfinite()
        if objective.importance_cap is not None:
            used_n = used_n & inside_n
        if self._kept_N is not None:
            used_n = used_n & self._kept_N[tokens]
        token_ratio_n = torch.exp(scores.logprobs_N - old.logprobs_N)
        ratio_n, advantages_n = self._ratio(tokens, scores, token_ratio_n), row.advantages_N[tokens]
        surrogate_n, clipped_n = _surrogate(objective, scores.logprobs_N, ratio_n, advantages_n)
        correction_n = torch.ones_like(rollout_n)
        if objective.importance_cap is not None:
            correction_n = importance_weights(
                old.logprobs_N - old.log_nucleus_N,
                rollout_n,
                cap=objective.importance_cap,
                beyond=objective.importance_beyond,
            )
        correction_n = correction_n.where(used_n, 0.0)  # before the product: the gradient of 0 * nan would be nan
        loss_n = correction_n * surrogate_n
        kl_n = torch.full_like(rollout_n, torch.nan)  # not measured
        if self._reference_N is not None:
            kl_n = kl_estimate(scores.logprobs_N.detach(), self._reference_N[tokens], "k3")
        if objective.kl_coefficient:
            assert self._reference_N is not None, "a KL in the loss needs a reference"
            kl_loss_n = kl_estimate(scores.logprobs_N, self._reference_N[tokens], objective.kl_estimator)
            loss_n = loss_n + objective.kl_coefficient * kl_loss_n
        if objective.entropy_coefficient:
            loss_n = loss_n - objective.entropy_coefficient * scores.entropy_N
        sides = (clipped_n & (ratio_n.detach() < 1), clipped_n & (ratio_n.detach() > 1))
        columns = (
            clipped_n, token_ratio_n.detach(), kl_n, ~used_n, ~inside_n, correction_n, scores.log_nucleus_N, *sides
        )  # fmt: skip
        self.sums += torch.stack([column.double().sum() for column in columns])
        return row.weights_N[tokens] * torch.where(used_n, loss_n, 0.0)

    def _ratio(self, tokens: slice, scores: TokenScores, token_ratio_n: Tensor) -> Tensor:
        """Return [n] the ratio that the surrogate takes, with gradient."""
        return token_ratio_n


class AnswerPolicyLoss(PolicyLoss):
    """The policy loss with one ratio for all tokens of an answer (GSPO), as `learner.forward.logprobs.RowLoss`.

    Each token has the value s and the gradient s * grad(log pi): with weights 1/|y|, value and gradient of the answer
    are those of s = (pi / pi_old)^(1/|y|), clipped as a whole.
    """

    def __init__(
        self,
        row: RowTensors,
        objective: Objective,
        *,
        old: TokenScores,
        reference_N: Tensor | None,
        kept_N: Tensor | None = None,
        add_up: Callable[[Tensor], Tensor],
    ) -> None:
        """Take what the loss of every tile needs.

        Args:
            row: the row.
            objective: parameters of the loss.
            old: as in `PolicyLoss`; while the old policy is the current one, `PolicyLoss` is the same loss for less.
            reference_N: as in `PolicyLoss`.
            kept_N: as in `PolicyLoss`.
            add_up: sums a tensor over the ranks that share the row.
        """
        super().__init__(row, objective, old=old, reference_N=reference_N, kept_N=kept_N)
        self._old_logprobs_N = old.logprobs_N
        self._add_up = add_up
        self._ratios_N: Tensor | None = None

    def see_row(self, logprobs_N: Tensor) -> None:
        """Compute the ratio of every answer."""
        row = self._row
        self._ratios_N = answer_ratios(
            logprobs_N, self._old_logprobs_N, row.answers_N, num_answers=row.num_answers, add_up=self._add_up
        )

    def _ratio(self, tokens: slice, scores: TokenScores, token_ratio_n: Tensor) -> Tensor:
        assert self._ratios_N is not None, "call see_row first"
        return self._ratios_N[tokens] * torch.exp(scores.logprobs_N - scores.logprobs_N.detach())


def policy_loss(
    row: RowTensors,
    objective: Objective,
    *,
    old: TokenScores | None,
    reference_N: Tensor | None,
    add_up: Callable[[Tensor], Tensor],
) -> PolicyLoss:
    """Return the loss of a row.

    Args:
        row: the row.
        objective: parameters of the loss.
        old: scores under the policy before the first update of the batch; None while it is the current one.
        reference_N: [N] log-probabilities under the reference policy; None without one.
        add_up: sums a tensor over the ranks that share the row.
    """
    kept_N = None
    if old is not None and objective.max_answer_ratio is not None:
        kept_N = kept_answers(
            old.logprobs_N - old.log_nucleus_N,
            row.rollout_logprobs_N,
            row.answers_N,
            num_answers=row.num_answers,
            max_ratio=objective.max_answer_ratio,
            add_up=add_up,
        )
    if objective.surrogate == "gspo" and old is not None:
        return AnswerPolicyLoss(row, objective, old=old, reference_N=reference_N, kept_N=kept_N, add_up=add_up)
    return PolicyLoss(row, objective, old=old, reference_N=reference_N, kept_N=kept_N)


def _surrogate(
    objective: Objective, logprobs_n: Tensor, ratio_n: Tensor, advantages_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Return [n] the surrogate loss, and [n] bool where a clip acts."""
    high = objective.clip_high
    if objective.surrogate == "cispo":
        return weighted_policy_loss(logprobs_n, ratio_n, advantages_n, clip_high=high), ratio_n.detach() > 1 + high
    low, dual = objective.clip_low, objective.dual_clip
    surrogate_n = clipped_policy_loss(ratio_n, advantages_n, clip_low=low, clip_high=high, dual_clip=dual)
    return surrogate_n, is_clipped(ratio_n.detach(), advantages_n, clip_low=low, clip_high=high, dual_clip=dual)


def comparable_tokens(scores: TokenScores, rollout_logprobs_N: Tensor) -> Tensor:
    """Return [N] bool: the sampler's log-probability is finite and the token lies in the learner's own nucleus.

    Only there do both sides have a log-probability under a distribution that is cut to a nucleus.
    """
    return rollout_logprobs_N.isfinite() & (scores.inside_N > 0)


def _detached(scores: TokenScores) -> TokenScores:
    return TokenScores(*(column.detach() for column in scores))
