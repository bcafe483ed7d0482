"""Full weights out of ZeRO-3: bucket by bucket, always in the same order, tied weights once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actors.weights.update import TensorLayout, bucket_slices


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """A full tensor before it is gathered."""

    name: str
    """In Hugging Face form."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of the full tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def layout(self) -> TensorLayout:
        """In a form for processes without torch."""
        return TensorLayout(name=self.name, dtype=str(self.dtype).removeprefix("torch."), shape=self.shape)


class WeightSource:
    """The parameters of a module, gathered while they are iterated over.

    Has the two channels of vLLM's class of that name, `metadata` and iteration, so its NCCL sender could take it.
    Waits for: the other ranks, in every bucket.  Unblocked by: all ranks iterating to the end, in step.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take a module whose parameters ZeRO-3 has partitioned, or a plain one."""
        self._parameters = list(module.named_parameters())

    def metadata(self) -> list[TensorMeta]:
        """What iteration will yield; gathers nothing."""
        return [
            TensorMeta(name=name, dtype=weight.dtype, shape=tuple(getattr(weight, "ds_shape", weight.shape)))
            for name, weight in self._parameters
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter as (name, full tensor), on every rank; the tensor is gone when the next one is asked for."""
        for bucket in self.buckets():
            yield from bucket

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """The same, as many parameters at a time as are gathered at once (`bucket_slices` of their sizes)."""
        import deepspeed

        for bucket in self._buckets():
            with deepspeed.zero.GatheredParameters([weight for _, weight in bucket]):
                yield [(name, weight.detach()) for name, weight in bucket]

    def _buckets(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        for cut in bucket_slices([meta.num_bytes for meta in self.metadata()]):
            yield self._parameters[cut]
