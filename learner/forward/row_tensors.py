"""Packed rows on the device of the model, whole or this rank's share of them.

`N` response tokens that count in the loss, `T` tokens of the row, `S` prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.attention.shared_prefix import RowLayout, dense_layout, prompt_layout, response_layout, whole_layout
from learner.attention.ulysses import HeadExchange
from learner.batch.microbatch import MicroBatch
from learner.collectives import add_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The device for rows, and the place of this rank among those that share a row."""

    device: torch.device
    exchange: HeadExchange | None = None
    """Set where several ranks share a row."""
    rank: int = 0
    """Rank of this process among those that share a row."""

    @property
    def num_ranks(self) -> int:
        """Ranks that share a row."""
        return 1 if self.exchange is None else self.exchange.num_ranks

    def add_up(self, sums: Tensor) -> Tensor:
        """Add up the sums of all ranks that share a row. Collective among them."""
        return sums if self.exchange is None else add_up(sums, self.exchange.group)

    def own_slice(self, num_tokens: int) -> tuple[slice, int]:
        """Return the tokens of a part that this rank holds, and the padding that makes all shares equally long."""
        padding = -num_tokens % self.num_ranks
        length = (num_tokens + padding) // self.num_ranks
        return slice(self.rank * length, (self.rank + 1) * length), padding


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """Tokens that go through a layer together."""

    tokens: slice
    """Of those that this rank holds."""
    layout: RowLayout
    """Of the whole part, also on a rank that holds a share of it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTensors:
    """A `MicroBatch` on the device, or this rank's share of it: its tokens, and the labels that they predict.

    It must not become a tuple or dict of tensors: DeepSpeed would cast their fp32 entries to the model's dtype.
    """

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64."""
    parts: tuple[RowPart, ...]
    """The whole row; or its prompts, then each batch of their responses. They cover the tokens held here, in order."""
    predictors_N: Tensor
    """[N] int64 index into the tokens held here."""
    labels_N: Tensor
    """[N] int64."""
    weights_N: Tensor
    """[N] fp32 share of the loss."""
    advantages_N: Tensor
    """[N] fp32."""
    rollout_logprobs_N: Tensor
    """[N] fp32, nats."""
    temperature_N: Tensor
    """[N] fp32."""
    top_p_N: Tensor | None
    """[N] fp32; None where the sampler kept the whole distribution."""
    answers_N: Tensor
    """[N] int64 index of the response in the whole row that each token belongs to."""
    num_answers: int
    """Responses of the whole row."""
    own_N: Tensor
    """[N] int64 index of each label among all labels of the whole row."""
    num_labels: int
    """Labels of the whole row."""
    is_placeholder: bool
    """True for a row with weight zero, which only keeps the ranks in step."""

    @classmethod
    def of(cls, row: MicroBatch, placement: Placement, *, dense: bool = False) -> Self:
        """Copy the row to the device.

        Args:
            row: the row.
            placement: the device, and the rank that decides which tokens of the row it holds.
            dense: use torch's own attention; every prompt of the row must then have one response.
        """
        held, parts = _own_parts(row, placement, dense=dense)
        index = np.full(len(row.input_ids), -1)  # of a token among those held here; -1 for those of other ranks
        index[held[held >= 0]] = np.flatnonzero(held >= 0)
        mine = np.flatnonzero(index[row.predictors] >= 0)

        def move(array: NDArray[Any]) -> Tensor:
            return torch.as_tensor(array).to(placement.device, non_blocking=True)

        return cls(
            input_ids=move(np.where(held >= 0, row.input_ids[held], 0))[None],
            position_ids=move(np.where(held >= 0, row.position_ids[held], 0))[None],
            parts=parts,
            predictors_N=move(index[row.predictors[mine]]),
            labels_N=move(row.labels[mine]),
            weights_N=move(row.weights[mine]),
            advantages_N=move(row.advantages[mine]),
            rollout_logprobs_N=move(row.rollout_logprobs[mine]),
            temperature_N=move(row.temperature[mine]),
            top_p_N=move(row.top_p[mine]) if (row.top_p < 1).any() else None,
            answers_N=move(row.answers[mine]),
            num_answers=int(row.answers.max(initial=-1)) + 1,
            own_N=move(mine),
            num_labels=len(row.labels),
            is_placeholder=row.is_placeholder,
        )


def to_device(row: MicroBatch, placement: Placement, *, dense: bool = False) -> RowTensors:
    """Copy a row to the device; with `dense`, a row without batches uses torch's own attention."""
    return RowTensors.of(row, placement, dense=dense)


def _own_parts(row: MicroBatch, placement: Placement, *, dense: bool) -> tuple[NDArray[np.int64], tuple[RowPart, ...]]:
    """Return the tokens of the row that this rank holds, -1 for padding, and the parts that they make up."""
    held: list[NDArray[np.int64]] = []
    parts: list[RowPart] = []
    start = end = 0
    for num_tokens, layout in _layouts(row, placement.device, dense=dense):
        own, padding = placement.own_slice(num_tokens)
        tokens = np.pad(np.arange(start, start + num_tokens), (0, padding), constant_values=-1)[own]
        if placement.exchange is not None:
            layout = layout.with_exchange(placement.exchange, padding, placement.device)
        held.append(tokens)
        parts.append(RowPart(slice(end, end + len(tokens)), layout))
        start, end = start + num_tokens, end + len(tokens)
    return np.concatenate(held), tuple(parts)


def _layouts(row: MicroBatch, device: torch.device, *, dense: bool) -> Iterator[tuple[int, RowLayout]]:
    """Yield the tokens and the layout of every part of a row."""
    if not row.batches:
        yield len(row.input_ids), (dense_layout if dense else whole_layout)(row.segments, device)
        return
    prompts = [segment.prompt_tokens for segment in row.segments]
    yield sum(prompts), prompt_layout(prompts, device)
    for batch in row.batches:
        yield sum(map(sum, batch)), response_layout(prompts, batch, device)
