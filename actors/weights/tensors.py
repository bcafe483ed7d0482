"""The tensors of a weight update, with torch and without vLLM: described, read from memory, loaded, and broadcast.

They are broadcast in a process group of their own, gloo on a CPU and NCCL on GPUs, which is independent of the default
group of the learner's ranks and of the groups of vLLM.
"""

from __future__ import annotations

import socket
import time
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from mmap import mmap
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from actors.weights.update import TensorRecord, WeightGroup, WeightGroupError, bucket_slices, segment_offsets

BLOCK_BYTES = 4096
"""Unit in which large tensors are sampled."""
WHOLE_BYTES = 64 << 10
"""Tensors up to this size are checksummed as a whole."""
IN_FLIGHT = 2
"""Buckets that are sent at once: one is packed, or loaded, while the other is sent."""
POLL_S = 2e-4
"""Seconds between two checks whether a broadcast has ended."""


# descriptions ----------------------------------------------------------------------------------------------------


def described(name: str, tensor: Tensor, *, version: int, stride: int) -> TensorRecord:
    """Describe a full tensor, with the CRC-32 of sampled blocks.

    Args:
        name: of the tensor.
        tensor: full, on any device.
        version: of the update; the sampled blocks move with it, so that `stride` updates cover every byte.
        stride: blocks from one sampled block to the next; the first and the last block are sampled as well. 1 takes the
            whole tensor.
    """
    data = tensor.detach().reshape(-1).view(torch.uint8)
    return TensorRecord(
        name=name,
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        num_bytes=data.numel(),
        checksum=_checksum(data, version % stride, stride),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type without its module, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def recorded(
    named_tensors: Iterable[tuple[str, Tensor]], records: list[TensorRecord], *, version: int, stride: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors unchanged; append a record of each to `records`."""
    for name, tensor in named_tensors:
        records.append(described(name, tensor, version=version, stride=stride))
        yield name, tensor


def _checksum(data: Tensor, first: int, stride: int) -> int:
    if stride == 1 or data.numel() <= WHOLE_BYTES:
        return zlib.crc32(data.cpu().numpy().data)
    blocks = data[: data.numel() // BLOCK_BYTES * BLOCK_BYTES].view(-1, BLOCK_BYTES)
    sampled = torch.cat((blocks[0], blocks[first::stride].reshape(-1), data[-BLOCK_BYTES:]))
    return zlib.crc32(sampled.cpu().numpy().data)


# tensors in memory -----------------------------------------------------------------------------------------------


def mapped_tensors(memory: mmap, records: Sequence[TensorRecord]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a mapped segment without a copy; writing into one crashes, as the mapping is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        data = torch.frombuffer(memory, dtype=torch.uint8)
    return tensors_in(data, records)


def tensors_in(data: Tensor, records: Sequence[TensorRecord]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in [bytes] `data`, which are at the offsets of `segment_offsets`, without a copy."""
    for record, offset in zip(records, segment_offsets(records), strict=False):
        piece = data[offset : offset + record.num_bytes].view(getattr(torch, record.dtype))
        yield record.name, piece.reshape(record.shape)


# a model that loads them -----------------------------------------------------------------------------------------


def check_all_loaded(expected: set[str], loaded: set[str]) -> None:
    """Check that all parameters of the model got new values; names are those of vLLM.

    Raises:
        ValueError: a parameter kept its old values.
    """
    missing = sorted(expected - loaded)
    if missing:
        raise ValueError(
            f"parameter {missing[0]} of the engine (and {len(missing) - 1} others) got no new values: the update names "
            "no tensor for it; engine and learner must be of the same architecture"
        )


def repack_tied_head(model: Any) -> None:
    """Pack a tied LM head again: on a CPU, vLLM keeps a packed copy, which is not updated with the embedding."""
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight.device.type != "cpu":
        return
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)


# the process group -----------------------------------------------------------------------------------------------


class GroupMember:
    """One rank of a weight group; rank 0 sends.

    Waits for: the other members, at most the timeout of the group in `connect` and in every broadcast.  Unblocked by:
    the other members.
    """

    def __init__(self, store: Store, group: WeightGroup, *, rank: int, device: torch.device) -> None:
        """Take the settings of the group; `connect` joins it.

        Args:
            store: key-value store in which the members find each other.
            group: settings that all members share; its epoch separates the keys of two groups in one store.
            rank: 0 sends, the others receive.
            device: device of the weights; a CPU uses gloo, a GPU NCCL.
        """
        self.group = group
        self.device = device
        self._store = PrefixStore(f"weights-{group.epoch}", store)
        self._rank = rank
        self._name = f"weight group {group.epoch}"
        self._backend: Any = None
        self._is_closed = False

    def connect(self) -> None:
        """Join the other members, unless done before.

        Raises:
            WeightGroupError: some did not join, or the group was closed.
        """
        if self._is_closed:
            raise WeightGroupError(f"{self._name} was closed after an error; resume from the last checkpoint")
        if self._backend is not None:
            return
        try:
            self._rendezvous()
            self._backend = _process_group(self._store, self.group, self._rank, self.device)
        except RuntimeError as error:
            raise WeightGroupError(f"{self._name} did not form within {self.group.timeout_s:g} s: {error}") from error

    def start(self, buffer: Tensor) -> Any:
        """Begin to send [bytes] `buffer`, or to receive into it; do not use it before `finish`.

        Returns:
            the broadcast, for `finish`.

        Raises:
            WeightGroupError: other members did not join, or the group was closed.
        """
        self.connect()
        return self._backend.broadcast(buffer, 0)

    def finish(self, work: Any) -> None:
        """Wait for a broadcast; after an error close the group, so that the other members do not wait for a timeout.

        It polls, because NCCL's own wait would never end, or end the process at its timeout.

        Raises:
            WeightGroupError: a member died or makes no progress.
        """
        deadline = time.monotonic() + self.group.timeout_s
        try:
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a broadcast did not end within {self.group.timeout_s:g} s")
                time.sleep(POLL_S)
            work.wait()
        except (RuntimeError, TimeoutError) as error:
            self.close()
            raise WeightGroupError(
                f"{self._name} is broken, another member died or makes no progress: {error}"
            ) from error

    def close(self) -> None:
        """Leave the group; its running broadcasts end with an error, for every member."""
        backend, self._backend, self._is_closed = self._backend, None, True
        if backend is not None and self.device.type != "cpu":
            backend.abort()  # gloo closes its connections with the last reference

    def _rendezvous(self) -> None:
        """Wait in the store, with a timeout, until all members have joined; NCCL would wait for them without one."""
        keys = [f"rank-{rank}" for rank in range(self.group.world_size)]
        self._store.set(keys[self._rank], "joined")
        try:
            self._store.wait(keys, timedelta(seconds=self.group.timeout_s))
        except RuntimeError as error:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            raise RuntimeError(f"ranks {missing} did not join") from error


def host_store(host: str, timeout_s: float) -> TCPStore:
    """Open a store on a free port of this host, for rank 0; it listens on that address and no other."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def join_store(group: WeightGroup) -> TCPStore:
    """Connect to the store of rank 0.

    Raises:
        WeightGroupError: it does not answer.
    """
    timeout = timedelta(seconds=group.timeout_s)
    try:
        return TCPStore(group.host, group.port, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise WeightGroupError(f"the learner's store at {group.host}:{group.port} does not answer: {error}") from error


def received(member: GroupMember, records: Sequence[TensorRecord]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that rank 0 sends, bucket by bucket; the next bucket is received meanwhile.

    Every bucket gets memory of its own: vLLM keeps the tensors of a layer until all of them have arrived.

    Raises:
        WeightGroupError: a member died or makes no progress.
    """
    buckets = [records[cut] for cut in bucket_slices(records)]
    started = ((bucket, buffer, member.start(buffer)) for bucket, buffer in _empty_buffers(buckets, member.device))
    under_way = deque(islice(started, IN_FLIGHT))
    while under_way:
        bucket, buffer, work = under_way.popleft()
        member.finish(work)
        under_way.extend(islice(started, 1))
        yield from tensors_in(buffer, bucket)


def _empty_buffers(
    buckets: Sequence[Sequence[TensorRecord]], device: torch.device
) -> Iterator[tuple[Sequence[TensorRecord], Tensor]]:
    for bucket in buckets:
        yield bucket, torch.empty(segment_offsets(bucket)[-1], dtype=torch.uint8, device=device)


def _process_group(store: Store, group: WeightGroup, rank: int, device: torch.device) -> Any:
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, group.world_size, timedelta(seconds=group.timeout_s))
    options = dist.ProcessGroupNCCL.Options()
    # longer than the timeout in `finish`, which must come first: NCCL's own ends the process
    options._timeout = timedelta(seconds=2 * group.timeout_s)
    return dist.ProcessGroupNCCL(store, rank, group.world_size, options)
