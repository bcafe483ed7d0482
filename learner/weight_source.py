"""Full weights out of ZeRO-3: bucket by bucket, always in the same order, tied weights once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BUCKET_BYTES = 64 << 20
"""Full weights that are gathered at once; a larger tensor is gathered alone."""


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
        import deepspeed

        for bucket in self._buckets():
            with deepspeed.zero.GatheredParameters([weight for _, weight in bucket]):
                for name, weight in bucket:
                    yield name, weight.detach()

    def _buckets(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        bucket: list[tuple[str, nn.Parameter]] = []
        size = 0
        for named, meta in zip(self._parameters, self.metadata(), strict=True):
            if bucket and size + meta.num_bytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(named)
            size += meta.num_bytes
        if bucket:
            yield bucket
