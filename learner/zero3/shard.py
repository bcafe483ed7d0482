"""One rank's shard of weights and optimizer under ZeRO-3, on disk, and its restoration on any number of ranks.

ZeRO-3 divides every parameter, flattened, into equal partitions, one per rank, the last one padded. Each rank stores
its partitions one after the other in a few flat fp32 tensors; the moments of the optimizer have the same layout. A
shard file holds these flat tensors (`flat_file.py`), and the index says where the partition of each parameter starts.
If the number of ranks has changed, a rank that restores needs other partitions; it reads only these, from the files
that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curriculum.digest import Block
from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder
from learner.zero3.flat_file import FlatFile, flat_file_blocks, flat_file_bytes

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Columns of AdamW; absent before its first step."""

Index = dict[str, list[int]]
"""Per parameter: flat tensor, first element there, elements of the partition, elements of the whole parameter."""


def shard_name(rank: int) -> str:
    """Return the file name of the shard of one rank."""
    return f"rank_{rank:05d}.safetensors"


class Shard:
    """The flat tensors of this rank, in use by the model and its optimizer."""

    def __init__(self, engine: Any) -> None:
        """Take a `DeepSpeedEngine` with a ZeRO-3 optimizer."""
        self._zero: Any = engine.optimizer
        self._flats: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        self._rank = 0
        self.index: Index = {}
        for name, parameter in engine.module.named_parameters():
            flat, offset, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            self.index[name] = [int(flat), int(offset), int(length), int(parameter.ds_numel)]
            self._rank = self._zero._get_param_partition_rank(parameter)

    @property
    def step(self) -> int | None:
        """Updates of the optimizer; None before the first."""
        state = self._optimizer_state(0)
        return int(state["step"]) if state else None

    @property
    def num_bytes(self) -> int:
        """Size of the file of this shard."""
        return flat_file_bytes(dict(self._columns()))

    def blocks(self) -> Iterator[Block]:
        """Yield the file of this shard from its beginning to its end."""
        return flat_file_blocks(dict(self._columns()))

    def restore(self, saved: SavedShards, *, step: int | None) -> None:
        """Fill the flat tensors, and the weights that the model computes with, from the shards in a folder.

        Args:
            saved: of any number of ranks.
            step: updates of the optimizer when it was saved; None if there was none.

        Raises:
            UserError: the shards hold other parameters.
        """
        _check_same_parameters(saved, self.index)
        self._set_step(step)
        for key, tensor in self._columns():
            column, flat = key.split(".")
            for name, (own_flat, offset, length, _) in self.index.items():
                if own_flat == int(flat):
                    partition = tensor.detach()[offset : offset + length]
                    saved.fill(partition, self._rank * length, column, name)
        self._refresh_model()

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights and moments of every flat tensor, named after both."""
        for flat, weights in enumerate(self._flats):
            yield f"{WEIGHTS}.{flat}", weights
            state = self._optimizer_state(flat)
            for moment in MOMENTS if state else ():
                yield f"{moment}.{flat}", state[moment]

    def _optimizer_state(self, flat: int) -> dict[str, Tensor]:
        return self._zero.optimizer.state.get(self._flats[flat], {})

    def _set_step(self, step: int | None) -> None:
        """Give the optimizer the state that it has after this many updates, with moments of zero."""
        state = self._zero.optimizer.state
        state.clear()
        for weights in self._flats if step is not None else ():
            state[weights] = {
                "step": torch.tensor(float(step or 0), device=weights.device),
                **{moment: torch.zeros_like(weights) for moment in MOMENTS},
            }

    def _refresh_model(self) -> None:
        """Copy the fp32 weights into the partitions that the model computes with; small weights are gathered again."""
        zero = self._zero
        zero.checkpoint_event_prologue()
        for flat, weights in enumerate(self._flats):
            partition = zero.fp16_partitioned_groups_flat[flat]
            partition.data.copy_(weights.data)
            fresh = zero.unflatten(partition, zero.fp16_partitioned_groups[flat])
            for parameter, tensor in zip(zero.fp16_partitioned_groups[flat], fresh, strict=True):
                parameter.data = tensor.data
        zero.checkpoint_event_epilogue()


class SavedShards:
    """The shards of all ranks that saved, read by parameter."""

    def __init__(self, directory: SharedFolder, index: Index, num_shards: int) -> None:
        """Take the folder of the files, one per rank that saved, and the index that they share."""
        self.directory = directory
        self._index = index
        self._files = [FlatFile(directory, shard_name(rank)) for rank in range(num_shards)]

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of every parameter."""
        return {name: entry[3] for name, entry in self._index.items()}

    def whole(self, name: str) -> Tensor:
        """Return the weights of a parameter, flat, in fp32."""
        weights = torch.empty(self._index[name][3], dtype=torch.float32)
        self.fill(weights, 0, WEIGHTS, name)
        return weights

    def fill(self, partition: Tensor, start: int, column: str, name: str) -> None:
        """Read a partition of a parameter from the saved ones; elements after the end of the parameter are padding.

        Args:
            partition: filled in place.
            start: its first element in the parameter.
            column: weights or a moment, as named in the files.
            name: of the parameter.
        """
        flat, offset, length, numel = self._index[name]
        end = min(start + len(partition), numel)
        partition.zero_()
        position = start
        while position < end:
            shard, inside = divmod(position, length)
            count = min(length - inside, end - position)
            first = offset + inside
            piece = self._files[shard].read(f"{column}.{flat}", first, first + count)
            partition[position - start : position - start + count].copy_(piece)
            position += count


def _check_same_parameters(saved: SavedShards, own: Index) -> None:
    """Raise unless the names and sizes of all parameters are equal."""
    sizes, own_sizes = saved.sizes, {name: entry[3] for name, entry in own.items()}
    if sizes != own_sizes:
        names = sorted(name for name in sizes.keys() | own_sizes.keys() if sizes.get(name) != own_sizes.get(name))
        raise UserError(
            f"{saved.directory} belongs to another model: {names[0]} differs; resume with the model it came from"
        )
