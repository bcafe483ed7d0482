"""Sums over the rows of a step, and the means they become once all ranks have added theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors
from learner.objective.objective import DIAGNOSTICS, usable_tokens

_COLUMNS = ("loss", "tokens", "entropy", "hits", *DIAGNOSTICS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """Means over a step, equal on every rank; those over updates count the updates that were made, NaN if none was."""

    num_tokens: int
    num_updates: int
    num_skipped_updates: int
    loss: float
    """Mean over the updates."""
    grad_norm: float
    """Mean over the updates."""
    entropy: float
    """Mean over the tokens (nats)."""
    token_accuracy: float
    clip_fraction: float
    mean_ratio: float
    kl_to_reference: float
    masked_fraction: float
    """Share of the tokens left out of the loss."""
    importance_weight: float
    """Mean over the tokens; 1 without correction, less by what is masked."""
    log_nucleus: float
    """Mean over the tokens (nats)."""
    rollout_logprob_gap_mean: float
    """Over the tokens that take part."""
    rollout_logprob_gap_max: float


class StepAccumulator:
    """Collects sums on the device without waiting for it; `reduce` is the only synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows = [torch.zeros(len(_COLUMNS), dtype=torch.float64, device=device)]
        self._updates: list[Tensor] = []
        self._grad_norms: list[float] = []
        self._num_skipped = 0
        self._gap_sum = torch.zeros(2, dtype=torch.float64, device=device)
        self._gap_max = torch.zeros((), dtype=torch.float64, device=device)

    def add_row(self, row: RowTensors, scores: TokenScores, loss: Tensor, diagnostics: Tensor | None = None) -> None:
        """Count a row: of demonstrations, or of groups with the sums of its `PolicyLoss`."""
        if row.is_placeholder:
            return
        general = torch.stack(
            [
                loss.detach().double(),
                torch.full_like(self._gap_max, len(row.labels_N)),
                scores.entropy_N.double().sum(),
                scores.hits_N.double().sum(),
            ]
        )
        if diagnostics is None:
            diagnostics = torch.zeros(len(DIAGNOSTICS), dtype=torch.float64, device=self._device)
        self._rows.append(torch.cat((general, diagnostics)))

    def add_gap(self, row: RowTensors, scores: TokenScores) -> None:
        """Compare with the engine's log-probabilities, before the first update; tokens that are left out do not count.

        The engine reports log-probabilities of the distribution cut to its nucleus, so the learner's are cut to theirs.
        """
        if row.is_placeholder or not len(row.labels_N):
            return
        used_N = usable_tokens(scores, row.rollout_logprobs_N)
        gap_N = (scores.logprobs_N - scores.log_nucleus_N - row.rollout_logprobs_N).abs().double().where(used_N, 0.0)
        self._gap_sum += torch.stack((gap_N.sum(), used_N.sum().double()))
        self._gap_max = torch.maximum(self._gap_max, gap_N.max())

    def close_update(self, grad_norm: float | None, *, share: float = 1.0) -> None:
        """End a mini-batch.

        Args:
            grad_norm: None if its update was skipped; its sums are then dropped.
            share: of the groups that the loss was normalised by, those that came.
        """
        if grad_norm is None:
            self._num_skipped += 1
        else:
            sums = torch.stack(self._rows).sum(dim=0)
            sums[_COLUMNS.index("loss")] /= share
            self._updates.append(sums)
            self._grad_norms.append(grad_norm)
        del self._rows[1:]

    def reduce(self) -> StepSums:
        """Add up over the ranks. Collective."""
        import torch.distributed as dist

        sums = torch.stack(self._updates).sum(dim=0) if self._updates else self._rows[0]
        sums = torch.cat((sums, self._gap_sum))
        if dist.get_world_size() > 1:
            dist.all_reduce(sums)
            dist.all_reduce(self._gap_max, op=dist.ReduceOp.MAX)
        *values, gap, num_gaps = sums.tolist()
        return self._means(dict(zip(_COLUMNS, values, strict=True)), gap, num_gaps)

    def _means(self, sums: dict[str, float], gap: float, num_gaps: float) -> StepSums:
        tokens, updates = sums["tokens"], len(self._updates)
        return StepSums(
            num_tokens=int(tokens),
            num_updates=updates,
            num_skipped_updates=self._num_skipped,
            loss=_ratio(sums["loss"], updates),
            grad_norm=_ratio(sum(self._grad_norms), updates),
            entropy=_ratio(sums["entropy"], tokens),
            token_accuracy=_ratio(sums["hits"], tokens),
            clip_fraction=_ratio(sums["clipped"], tokens),
            mean_ratio=_ratio(sums["ratio"], tokens),
            kl_to_reference=_ratio(sums["kl"], tokens),
            masked_fraction=_ratio(sums["masked"], tokens),
            importance_weight=_ratio(sums["importance"], tokens),
            log_nucleus=_ratio(sums["nucleus"], tokens),
            rollout_logprob_gap_mean=_ratio(gap, num_gaps),
            rollout_logprob_gap_max=float(self._gap_max),
        )


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
