"""Gathering and sending in one pass: while a bucket is on its way to the engines, the next one is gathered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.weights.member import IN_FLIGHT, GroupMember
from actors.weights.update import segment_offsets
from learner.weights.source import WeightSource


def broadcast(source: WeightSource, member: GroupMember) -> Iterator[tuple[str, Tensor]]:
    """Passes the tensors of a source on and sends them to the group; all are there when the iteration has ended.

    Consumes: the source, so the other ranks of the learner iterate over theirs.  Waits for: the members of the group,
    when two buckets are on their way.  Unblocked by: their receiving.

    Raises:
        WeightGroupError: a member is gone or stands still.
    """
    member.connect()
    under_way: deque[tuple[Tensor, Any]] = deque()
    for bucket in source.buckets():
        if len(under_way) == IN_FLIGHT:
            member.finish(under_way.popleft()[1])
        buffer = packed([tensor for _, tensor in bucket], member.device)
        under_way.append((buffer, member.start(buffer)))
        yield from bucket
    for _, work in under_way:
        member.finish(work)


def packed(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """[bytes] the tensors one after the other, as `segment_offsets` places them; on this device."""
    sizes = [tensor.nbytes for tensor in tensors]
    offsets = segment_offsets(sizes)
    buffer = torch.empty(offsets[-1], dtype=torch.uint8, device=device)
    for tensor, size, offset in zip(tensors, sizes, offsets, strict=False):
        buffer[offset : offset + size].copy_(tensor.reshape(-1).view(torch.uint8))
    return buffer
