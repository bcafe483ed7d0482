"""Packed rows on the device of the model, whole or this rank's part of them.

`N` response tokens that count in the loss, `T` tokens of the row, `S` prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.attention.shared_prefix import (
    PrefixCache,
    RowLayout,
    dense_layout,
    prompt_layout,
    response_layout,
    whole_layout,
)
from learner.attention.ulysses import HeadExchange
from learner.batch.microbatch import MicroBatch, PhasedMicroBatch
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
        """Return the tokens of a row that this rank holds, and the padding that makes all parts equally long."""
        padding = -num_tokens % self.num_ranks
        length = (num_tokens + padding) // self.num_ranks
        return slice(self.rank * length, (self.rank + 1) * length), padding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTensors:
    """A `MicroBatch` on the device, or this rank's part of it: its tokens, and the labels that they predict.

    It must not become a tuple or dict of tensors: DeepSpeed would cast their fp32 entries to the model's dtype.
    """

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64."""
    layout: RowLayout
    """Layout of the whole row, also on a rank that holds a part of it."""
    predictors_N: Tensor
    """[N] int64 index into the tokens held here; where the prompts were forwarded before, into the concatenation of
    their last hidden states held here and these tokens."""
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
        own, padding = placement.own_slice(len(row.input_ids))
        layout = _layout(row, placement.device, dense)
        if placement.exchange is not None:
            layout = layout.with_exchange(placement.exchange, padding, placement.device)
        predictors, mine = _own_predictors(row, placement, own)

        def move(array: NDArray[Any]) -> Tensor:
            return torch.as_tensor(array).to(placement.device, non_blocking=True)

        return cls(
            input_ids=move(np.pad(row.input_ids, (0, padding))[own])[None],
            position_ids=move(np.pad(row.position_ids, (0, padding))[own])[None],
            layout=layout,
            predictors_N=move(predictors),
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptTensors:
    """The prompts of a row on the device, or this rank's part of them."""

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64."""
    layout: RowLayout
    last_S: Tensor
    """[S] int64 index of the last token of every prompt that ends in this rank's part."""

    @classmethod
    def of(cls, prompts: Sequence[NDArray[np.int32]], placement: Placement) -> Self:
        """Copy S prompts, one after the other, to the device; positions start at 0 in every prompt."""
        lengths = [len(prompt) for prompt in prompts]
        own, padding = placement.own_slice(sum(lengths))
        layout = prompt_layout(lengths, placement.device)
        if placement.exchange is not None:
            layout = layout.with_exchange(placement.exchange, padding, placement.device)
        last = np.cumsum(lengths) - 1
        last = last[(last >= own.start) & (last < own.stop)] - own.start

        def move(array: NDArray[Any]) -> Tensor:
            return torch.as_tensor(array).to(placement.device, non_blocking=True)

        def own_part(parts: Sequence[NDArray[Any]]) -> Tensor:
            return move(np.pad(np.concatenate(parts, dtype=np.int64), (0, padding))[own])[None]

        return cls(
            input_ids=own_part(prompts),
            position_ids=own_part([np.arange(length) for length in lengths]),
            layout=layout,
            last_S=move(last),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhasedTensors:
    """A `PhasedMicroBatch` on the device."""

    prompts: PromptTensors
    batches: tuple[RowTensors, ...]

    @classmethod
    def of(cls, row: PhasedMicroBatch, placement: Placement) -> Self:
        """Copy prompts and responses to the device."""
        return cls(
            prompts=PromptTensors.of(row.prompts, placement),
            batches=tuple(RowTensors.of(batch, placement) for batch in row.batches),
        )

    def with_new_cache(self) -> Self:
        """Return the same rows with an empty cache, which the prompts fill and the responses read."""
        cache: PrefixCache = {}
        return replace(
            self,
            prompts=replace(self.prompts, layout=self.prompts.layout.with_cache(cache)),
            batches=tuple(replace(batch, layout=batch.layout.with_cache(cache)) for batch in self.batches),
        )


Row = RowTensors | PhasedTensors
"""A row on the device, whole or in phases."""


def responses_of(row: Row) -> tuple[RowTensors, ...]:
    """Return the batches of responses of a row in phases; a whole row is its only batch."""
    return row.batches if isinstance(row, PhasedTensors) else (row,)


def to_device(row: MicroBatch | PhasedMicroBatch, placement: Placement, *, dense: bool = False) -> Row:
    """Copy a row to the device; with `dense`, a whole row uses torch's own attention."""
    if isinstance(row, PhasedMicroBatch):
        return PhasedTensors.of(row, placement)
    return RowTensors.of(row, placement, dense=dense)


def _layout(row: MicroBatch, device: torch.device, dense: bool) -> RowLayout:
    if row.prompts_ahead:
        prompts = [segment.prompt_tokens for segment in row.segments]
        return response_layout(prompts, [segment.response_tokens for segment in row.segments], device)
    return dense_layout(row.segments, device) if dense else whole_layout(row.segments, device)


def _own_predictors(row: MicroBatch, placement: Placement, own: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the predictors that this rank holds, as indices into its part, and which of the N labels they predict."""
    if placement.exchange is None:
        return row.predictors, np.arange(len(row.predictors))
    if not row.prompts_ahead:
        mine = np.flatnonzero((row.predictors >= own.start) & (row.predictors < own.stop))
        return row.predictors[mine] - own.start, mine
    # The first label of a response belongs to the rank that holds the last token of its prompt, and so its last state.
    prompts = np.array([segment.prompt_tokens for segment in row.segments])
    prompt_own, _ = placement.own_slice(int(prompts.sum()))
    last = np.cumsum(prompts) - 1
    held = (last >= prompt_own.start) & (last < prompt_own.stop)
    place = np.cumsum(held) - 1  # index of a held prompt among the held ones
    from_prompt = row.predictors < len(prompts)
    token = row.predictors - len(prompts)
    wanted = np.where(
        from_prompt, held[np.minimum(row.predictors, len(prompts) - 1)], (token >= own.start) & (token < own.stop)
    )
    mine = np.flatnonzero(wanted)
    local = np.where(
        from_prompt, place[np.minimum(row.predictors, len(prompts) - 1)], token - own.start + int(held.sum())
    )
    return local[mine], mine
