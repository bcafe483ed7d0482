"""The losses of the tokens of one row, as callbacks that `logprobs.token_loss` calls tile by tile.

`_N` response tokens of the row, `_n` tokens of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors
from learner.objective.loss import KlEstimator, clipped_policy_loss, importance_weights, is_clipped, kl_estimate

TOKEN_SUMS = (
    "clip_fraction",
    "mean_ratio",
    "kl_to_reference",
    "masked_fraction",
    "importance_weight",
    "log_nucleus",
    "clip_low_fraction",
    "clip_high_fraction",
)
"""Fields of `StepReport` whose sums over the tokens of a row a `PolicyLoss` collects, in the order of its `sums`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Parameters of the policy loss."""

    clip_low: float
    clip_high: float
    kl_coefficient: float = 0.0
    kl_estimator: KlEstimator = "k3"
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus, which is subtracted from the loss."""
    importance_cap: float | None = None
    """Cap of the truncated importance sampling between sampler and learner; None applies no weights."""
    importance_beyond: Literal["truncate", "mask"] = "truncate"


class SftLoss:
    """Weighted negative log-likelihood of one row."""

    def __init__(self, row: RowTensors) -> None:
        self._row = row

    def __call__(self, tokens: slice, scores: TokenScores) -> Tensor:
        """Return the weighted loss of each of these tokens, as `learner.forward.logprobs.TokenLoss` defines it."""
        return -self._row.weights_N[tokens] * scores.logprobs_N


class PolicyLoss:
    """Clipped surrogate, importance correction, KL and entropy bonus of one row, with the sums for the report.

    A token counts if the sampler reported a finite log-probability for it, the learner's own nucleus contains it, and
    its answer is kept. All others have weight zero. The normaliser of the loss does not change, so leaving tokens out
    never scales up the others.
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
        used_n = usable_tokens(old, rollout_n)
        if self._kept_N is not None:
            used_n = used_n & self._kept_N[tokens]
        ratio_n, advantages_n = torch.exp(scores.logprobs_N - old.logprobs_N), row.advantages_N[tokens]
        low, high = objective.clip_low, objective.clip_high
        surrogate_n = clipped_policy_loss(ratio_n, advantages_n, clip_low=low, clip_high=high)
        clipped_n = is_clipped(ratio_n.detach(), advantages_n, clip_low=low, clip_high=high)
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
            kl_n = kl_estimate(scores.logprobs_N, self._reference_N[tokens], objective.kl_estimator)
        if objective.kl_coefficient:
            loss_n = loss_n + objective.kl_coefficient * kl_n
        if objective.entropy_coefficient:
            loss_n = loss_n - objective.entropy_coefficient * scores.entropy_N
        sides = (clipped_n & (ratio_n.detach() < 1), clipped_n & (ratio_n.detach() > 1))
        columns = (clipped_n, ratio_n.detach(), kl_n.detach(), ~used_n, correction_n, scores.log_nucleus_N, *sides)
        self.sums += torch.stack([column.double().sum() for column in columns])
        return row.weights_N[tokens] * torch.where(used_n, loss_n, 0.0)


def usable_tokens(scores: TokenScores, rollout_logprobs_N: Tensor) -> Tensor:
    """Return [N] bool: the sampler's log-probability is finite and the token lies in the learner's own nucleus."""
    return rollout_logprobs_N.isfinite() & (scores.inside_N > 0)


def _detached(scores: TokenScores) -> TokenScores:
    return TokenScores(*(column.detach() for column in scores))
