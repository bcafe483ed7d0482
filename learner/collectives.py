"""Collective calls of the ranks, with types, which torch.distributed does not declare completely."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed
from torch import Tensor

from curriculum.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_dist: Any = torch.distributed

_T = TypeVar("_T")


def barrier() -> None:
    """Wait until all ranks have made this call."""
    _dist.barrier()


def together(work: Callable[[], _T]) -> list[_T]:
    """Do a part of some work on every rank; return the results of all ranks, in their order, once all are done.

    Raises:
        UserError: the first one that a rank raised, on every rank, so that none waits for it and all may try again.
    """
    own: _T | UserError
    try:
        own = work()
    except UserError as error:
        own = error
    results: list[Any] = [None] * _dist.get_world_size()
    _dist.all_gather_object(results, own)
    for result in results:
        if isinstance(result, UserError):
            raise result
    return results


def add_up(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Replace a tensor by its sum over the ranks of a group, in place, and return it; None for all ranks."""
    if _dist.get_world_size(group) > 1:
        _dist.all_reduce(x, group=group)
    return x


def take_maximum(x: Tensor) -> Tensor:
    """Replace a tensor by its elementwise maximum over all ranks, in place, and return it."""
    if _dist.get_world_size() > 1:
        _dist.all_reduce(x, op=_dist.ReduceOp.MAX)
    return x


def all_to_all(parts: Tensor, group: ProcessGroup) -> Tensor:
    """Send part i of [N, ...] to rank i of a group of N ranks; return [N, ...] with the part from every rank."""
    received = torch.empty_like(parts, memory_format=torch.contiguous_format)
    _dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received


def new_group(ranks: list[int]) -> ProcessGroup:
    """Create a group of these ranks; all ranks make this call for every group."""
    return _dist.new_group(ranks)
