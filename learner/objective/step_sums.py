"""Sums over the rows of a step, and the report made of them once they are added up over the ranks."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from curriculum.metric import declared_metrics
from learner.collectives import add_up, take_maximum
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors
from learner.objective.objective import TOKEN_SUMS, comparable_tokens
from learner.reports import SftReport, StepReport

_COLUMNS = ("loss", "tokens", "entropy", "token_accuracy", *TOKEN_SUMS)
"""Sums over the tokens of a row, each under the name of its field in a report; `tokens` is the number of tokens."""
_Report = TypeVar("_Report", SftReport, StepReport)


class StepAccumulator:
    """Collects sums on the device without waiting for it; `report` is the only synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows = [torch.zeros(len(_COLUMNS), dtype=torch.float64, device=device)]
        self._updates: list[Tensor] = []
        self._grad_norms: list[float] = []
        self._num_skipped = 0
        self._gap_sum = torch.zeros(2, dtype=torch.float64, device=device)
        self._gap_max = torch.zeros((), dtype=torch.float64, device=device)

    def add_row(self, row: RowTensors, scores: TokenScores, loss: Tensor, token_sums: Tensor | None = None) -> None:
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
        if token_sums is None:
            token_sums = torch.zeros(len(TOKEN_SUMS), dtype=torch.float64, device=self._device)
        self._rows.append(torch.cat((general, token_sums)))

    def add_gap(self, row: RowTensors, scores: TokenScores) -> None:
        """Compare with the engine's log-probabilities, before the first update.

        The engine reports log-probabilities of the distribution restricted to its nucleus, so those of the learner are
        restricted to its own nucleus as well; tokens outside of it are not compared.
        """
        if row.is_placeholder or not len(row.labels_N):
            return
        used_N = comparable_tokens(scores, row.rollout_logprobs_N)
        gap_N = (scores.logprobs_N - scores.log_nucleus_N - row.rollout_logprobs_N).abs().double().where(used_N, 0.0)
        self._gap_sum += torch.stack((gap_N.sum(), used_N.sum().double()))
        self._gap_max = torch.maximum(self._gap_max, gap_N.max())

    def num_tokens(self) -> int:
        """Return the response tokens of the rows since the last update, on all ranks. Collective."""
        sums = torch.stack(self._rows).sum(dim=0)
        return int(add_up(sums[_COLUMNS.index("tokens")].clone()))

    def close_update(self, grad_norm: float | None, *, share: float = 1.0) -> None:
        """End a mini-batch.

        Args:
            grad_norm: L2 norm of the gradient; None if the update was skipped, whose sums are then dropped.
            share: see `learner.batch.aggregation.normaliser_share`; the loss is divided by it.
        """
        if grad_norm is None:
            self._num_skipped += 1
        else:
            sums = torch.stack(self._rows).sum(dim=0)
            sums[_COLUMNS.index("loss")] /= share
            self._updates.append(sums)
            self._grad_norms.append(grad_norm)
        del self._rows[1:]

    def report(self, kind: type[_Report], **known: Any) -> _Report:
        """Add up over the ranks and return the report. Collective.

        Args:
            kind: type of the report.
            known: the fields that are not computed from rows and updates.
        """
        sums = self._reduced()
        counts = {"tokens": sums["tokens"], "updates": len(self._updates), "compared_tokens": sums["compared_tokens"]}
        means = {
            name: _ratio(sums[name], counts[metric.mean_over])
            for name, metric in declared_metrics(kind).items()
            if metric.mean_over
        }
        totals = {
            "num_response_tokens": int(sums["tokens"]),
            "num_updates": len(self._updates),
            "num_skipped_updates": self._num_skipped,
            "rollout_logprob_gap_max": float(self._gap_max),
        }
        wanted = {field.name for field in fields(kind)}
        return kind(**means, **{name: total for name, total in totals.items() if name in wanted}, **known)

    def preview(self, kind: type[_Report], **known: Any) -> _Report:
        """Return the report of the rows since the last update as if one had been made; keep all sums. Collective."""
        updates, self._updates = self._updates, [torch.stack(self._rows).sum(dim=0)]
        try:
            return self.report(kind, **known)
        finally:
            self._updates = updates

    def _reduced(self) -> dict[str, float]:
        """Return sums over the rows of all ranks, by column, with those of the gap, and the sum of gradient norms."""
        sums = torch.stack(self._updates).sum(dim=0) if self._updates else self._rows[0]
        sums = add_up(torch.cat((sums, self._gap_sum)))
        take_maximum(self._gap_max)
        columns = (*_COLUMNS, "rollout_logprob_gap_mean", "compared_tokens")
        totals = {column: float(total) for column, total in zip(columns, sums.cpu(), strict=True)}
        return {"grad_norm": sum(self._grad_norms), **totals}


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
