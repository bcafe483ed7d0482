"""Packed rows on the device of the model, whole or this rank's stretch of them.

`N` response tokens that count in the loss, `T` tokens of the row, `S` prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where rows go: a device, and a rank among those that share a row."""

    device: torch.device
    exchange: HeadExchange | None = None
    """Set where several ranks share a row."""
    rank: int = 0
    """Of this process among them."""

    @property
    def num_ranks(self) -> int:
        """Ranks that share a row."""
        return 1 if self.exchange is None else self.exchange.num_ranks

    def add_up(self, sums: Tensor) -> Tensor:
        """The sums of all ranks that share a row. Collective among them."""
        import torch.distributed as dist

        if self.exchange is not None:
            dist.all_reduce(sums, group=self.exchange.group)
        return sums

    def stretch(self, num_tokens: int) -> tuple[slice, int]:
        """Own tokens of a row, and the padding that makes the row divisible by the ranks."""
        padding = -num_tokens % self.num_ranks
        length = (num_tokens + padding) // self.num_ranks
        return slice(self.rank * length, (self.rank + 1) * length), padding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTensors:
    """A `MicroBatch` on the device, or this rank's share of it: own tokens, and the labels that they predict.

    Not a tuple or dict of tensors on purpose: DeepSpeed would cast the fp32 entries of those to the model's dtype.
    """

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64."""
    layout: RowLayout
    """Of the whole row, also on a rank that holds a stretch."""
    predictors_N: Tensor
    """[N] int64 index into the row, or into the prompts' states followed by the row where the prompts went ahead."""
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
    """[N] int64 index of each label among all labels of the row, which other ranks may hold in part."""
    num_labels: int
    """Labels of the whole row."""
    is_placeholder: bool
    """True for a row that weighs nothing and only keeps the ranks in step."""

    @classmethod
    def of(cls, row: MicroBatch, placement: Placement, *, dense: bool = False) -> Self:
        """Copy the row to the device.

        Args:
            row: the row.
            placement: device, and which tokens of the row are this rank's.
            dense: use torch's own attention; every prompt of the row must then have one response.
        """
        own, padding = placement.stretch(len(row.input_ids))
        layout = _layout(row, placement.device, dense)
        if placement.exchange is not None:
            layout = layout.with_exchange(placement.exchange, padding, placement.device)
        predictors, mine = _own_predictors(row, placement, own)

        def move(array: NDArray) -> Tensor:
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
    """The prompts of a row on the device, or this rank's stretch of them."""

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64."""
    layout: RowLayout
    last_S: Tensor
    """[S] int64 index of the last token of every prompt that ends in this rank's stretch."""

    @classmethod
    def of(cls, prompts: Sequence[NDArray[np.int32]], placement: Placement) -> Self:
        """Copy S prompts, end to end, to the device; positions begin anew with every prompt."""
        lengths = [len(prompt) for prompt in prompts]
        own, padding = placement.stretch(sum(lengths))
        layout = prompt_layout(lengths, placement.device)
        if placement.exchange is not None:
            layout = layout.with_exchange(placement.exchange, padding, placement.device)
        last = np.cumsum(lengths) - 1
        last = last[(last >= own.start) & (last < own.stop)] - own.start

        def move(array: NDArray) -> Tensor:
            return torch.as_tensor(array).to(placement.device, non_blocking=True)

        def stretch(parts: Sequence[NDArray]) -> Tensor:
            return move(np.pad(np.concatenate(parts, dtype=np.int64), (0, padding))[own])[None]

        return cls(
            input_ids=stretch(prompts),
            position_ids=stretch([np.arange(length) for length in lengths]),
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

    def with_cache(self, cache: PrefixCache) -> Self:
        """The same rows around a cache, which the prompts fill and the responses read."""
        return replace(
            self,
            prompts=replace(self.prompts, layout=self.prompts.layout.with_cache(cache)),
            batches=tuple(replace(batch, layout=batch.layout.with_cache(cache)) for batch in self.batches),
        )


Row = RowTensors | PhasedTensors
"""What one micro-step forwards."""


def responses_of(row: Row) -> tuple[RowTensors, ...]:
    """The row itself, or the batches of its responses."""
    return row.batches if isinstance(row, PhasedTensors) else (row,)


def to_device(row: MicroBatch | PhasedMicroBatch, placement: Placement, *, dense: bool = False) -> Row:
    """The row on the device, whichever kind it is."""
    if isinstance(row, PhasedMicroBatch):
        return PhasedTensors.of(row, placement)
    return RowTensors.of(row, placement, dense=dense)


def _layout(row: MicroBatch, device: torch.device, dense: bool) -> RowLayout:
    if row.prompts_ahead:
        prompts = [segment.prompt_tokens for segment in row.segments]
        return response_layout(prompts, [segment.response_tokens for segment in row.segments], device)
    return dense_layout(row.segments, device) if dense else whole_layout(row.segments, device)


def _own_predictors(row: MicroBatch, placement: Placement, own: slice) -> tuple[NDArray, NDArray]:
    """Predictors as index into what this rank holds, and which of the N labels they predict."""
    if placement.exchange is None:
        return row.predictors, np.arange(len(row.predictors))
    if not row.prompts_ahead:
        mine = np.flatnonzero((row.predictors >= own.start) & (row.predictors < own.stop))
        return row.predictors[mine] - own.start, mine
    # Labels right behind a prompt belong to the rank that holds the prompt's last token, and so its last state.
    prompts = np.array([segment.prompt_tokens for segment in row.segments])
    prompt_own, _ = placement.stretch(int(prompts.sum()))
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
