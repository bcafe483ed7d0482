"""A member of the process group that carries weights from device to device: gloo on a CPU, NCCL on GPUs.

The group stands beside the default one of the learner's ranks and those of vLLM; nothing in here knows either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from actors.weights.loading import layout_bytes, tensors_in
from actors.weights.update import TensorLayout, WeightGroupError, bucket_slices, segment_offsets

IN_FLIGHT = 2
"""Buckets that travel at once: one is packed, or loaded, while the other is on its way."""
POLL_S = 2e-4


class GroupMember:
    """One rank of a group; rank 0 sends.

    Waits for: the other members, at most `timeout_s` in `connect` and in every broadcast.  Unblocked by: them.
    """

    def __init__(
        self, store: Store, *, rank: int, world_size: int, epoch: int, timeout_s: float, device: torch.device
    ) -> None:
        """Takes a seat; nobody is waited for before `connect`.

        Args:
            store: where the members find each other.
            rank: 0 sends, the others receive.
            world_size: of the group.
            epoch: number of the group; keeps the entries of two groups in one store apart.
            timeout_s: longest wait for the others.
            device: where the weights are; decides between gloo and NCCL.
        """
        self.device = device
        self._store = PrefixStore(f"weights-{epoch}", store)
        self._rank = rank
        self._world_size = world_size
        self._name = f"weight group {epoch}"
        self._timeout_s = timeout_s
        self._group: Any = None

    def connect(self) -> None:
        """Meets the other members, the first time that it is called.

        Raises:
            WeightGroupError: some did not come.
        """
        if self._group is not None:
            return
        try:
            self._meet()
            self._group = _process_group(self._store, self._rank, self._world_size, self._timeout_s, self.device)
        except RuntimeError as error:
            raise WeightGroupError(f"{self._name} did not form within {self._timeout_s:g} s: {error}") from error

    def start(self, buffer: Tensor) -> Any:
        """Sends [bytes] `buffer`, or receives into it; to be left alone until `finish` of what this returns."""
        assert self._group is not None, "connect comes first"
        return self._group.broadcast(buffer, 0)

    def finish(self, work: Any) -> None:
        """Waits for a broadcast. After an error the group is closed, so that the others need not wait for a timeout.

        It asks again and again, because a wait of NCCL's own would never end, or end the process at its timeout.

        Raises:
            WeightGroupError: a member is gone or stands still.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a bucket was under way for {self._timeout_s:g} s")
                time.sleep(POLL_S)
            work.wait()
        except (RuntimeError, TimeoutError) as error:
            self.close()
            raise WeightGroupError(
                f"{self._name} is broken, another member stands still or is gone: {error}"
            ) from error

    def close(self) -> None:
        """Leaves the group; what is under way in it ends with an error, here and elsewhere."""
        group, self._group = self._group, None
        if group is not None and self.device.type != "cpu":
            group.abort()  # gloo closes its connections with the last reference

    def _meet(self) -> None:
        """NCCL waits without a limit for a member that does not come; the store does not."""
        seats = [f"seat-{rank}" for rank in range(self._world_size)]
        self._store.set(seats[self._rank], "taken")
        try:
            self._store.wait(seats, timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            missing = [rank for rank, seat in enumerate(seats) if not self._store.check([seat])]
            raise RuntimeError(f"no sign of ranks {missing}") from error


def host_store(host: str, timeout_s: float) -> TCPStore:
    """A store on a free port of this host, for rank 0."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """The store of rank 0, for the others.

    Raises:
        WeightGroupError: it does not answer.
    """
    try:
        return TCPStore(host, port, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    except RuntimeError as error:
        raise WeightGroupError(f"the learner's store at {host}:{port} does not answer: {error}") from error


def received(member: GroupMember, layouts: Sequence[TensorLayout]) -> Iterator[tuple[str, Tensor]]:
    """What rank 0 sends, bucket by bucket; the next bucket travels while the tensors of one are looked at.

    Every bucket gets memory of its own: vLLM keeps tensors of a layer until the last one of it is there.

    Raises:
        WeightGroupError: a member is gone or stands still.
    """
    buckets = [layouts[cut] for cut in bucket_slices([layout_bytes(layout) for layout in layouts])]
    started = ((bucket, buffer, member.start(buffer)) for bucket, buffer in _empty_buffers(buckets, member.device))
    under_way = deque(islice(started, IN_FLIGHT))
    while under_way:
        bucket, buffer, work = under_way.popleft()
        member.finish(work)
        under_way.extend(islice(started, 1))
        yield from tensors_in(buffer, bucket)


def _empty_buffers(
    buckets: Sequence[Sequence[TensorLayout]], device: torch.device
) -> Iterator[tuple[Sequence[TensorLayout], Tensor]]:
    for bucket in buckets:
        size = segment_offsets(layout_bytes(layout) for layout in bucket)[-1]
        yield bucket, torch.empty(size, dtype=torch.uint8, device=device)


def _process_group(store: Store, rank: int, world_size: int, timeout_s: float, device: torch.device) -> Any:
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=timeout_s))
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=2 * timeout_s)  # ours comes first: NCCL's watchdog would end the process
    return dist.ProcessGroupNCCL(store, rank, world_size, options)
