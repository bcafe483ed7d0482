"""One rank's share of weights and optimizer under ZeRO-3, on disk, and its restoration on any number of ranks.

ZeRO-3 cuts every parameter, flattened, into equal stretches, one per rank, the last one padded. Each rank lays its
stretches one after the other into a few flat fp32 tensors; the optimizer's moments have the same layout. These flat
tensors are what a shard file holds (safetensors), and the index says where each parameter's stretch lies. A rank that
restores wants other stretches if the number of ranks has changed; it reads them from the files of the ranks that had
them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from curriculum.errors import UserError

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Columns of AdamW; absent before its first step."""

Index = dict[str, list[int]]
"""Per parameter: flat tensor, first element there, elements of the stretch, elements of the whole parameter."""


def shard_name(rank: int) -> str:
    """File of one rank."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(slots=True)
class Shard:
    """The flat tensors of this rank, live."""

    zero: Any
    """DeepSpeed's ZeRO-3 optimizer."""
    flats: list[Tensor]
    """fp32 weights."""
    index: Index
    rank: int

    @classmethod
    def of(cls, engine: Any) -> Shard:
        """What this rank of a `DeepSpeedEngine` holds now."""
        zero: Any = engine.optimizer
        index: Index = {}
        rank = 0
        for name, parameter in engine.module.named_parameters():
            flat, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            index[name] = [int(flat), int(offset), int(length), int(parameter.ds_numel)]
            rank = zero._get_param_partition_rank(parameter)
        return cls(zero, zero.fp32_partitioned_groups_flat, index, rank)

    @property
    def step(self) -> int | None:
        """Updates of the optimizer; None before the first."""
        state = self._optimizer_state(0)
        return int(state["step"]) if state else None

    def save(self, path: Path) -> None:
        """Write the flat tensors."""
        save_file({key: tensor.detach().contiguous() for key, tensor in self._columns()}, path)

    def restore(self, directory: Path, index: Index, num_shards: int, *, step: int | None) -> None:
        """Fill the flat tensors, and the weights that the model computes with, from the shards in a folder.

        Args:
            directory: with one file per rank that saved.
            index: of those files, the same for all of them.
            num_shards: ranks that saved.
            step: updates of the optimizer then; None if there was none.

        Raises:
            ValueError: the shards hold other parameters.
        """
        _check_same_parameters(directory, index, self.index)
        self._set_step(step)
        files = [safe_open(directory / shard_name(rank), framework="pt") for rank in range(num_shards)]
        for key, tensor in self._columns():
            column, flat = key.split(".")
            for name, (own_flat, offset, length, numel) in self.index.items():
                if own_flat == int(flat):
                    stretch = tensor.detach()[offset : offset + length]
                    _fill(stretch, self.rank * length, numel, column, index[name], files)
        self._refresh_model()

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        for flat, weights in enumerate(self.flats):
            yield f"{WEIGHTS}.{flat}", weights
            state = self._optimizer_state(flat)
            for moment in MOMENTS if state else ():
                yield f"{moment}.{flat}", state[moment]

    def _optimizer_state(self, flat: int) -> dict[str, Tensor]:
        return self.zero.optimizer.state.get(self.flats[flat], {})

    def _set_step(self, step: int | None) -> None:
        """Make the optimizer's state as it is after so many updates, moments still to be filled."""
        state = self.zero.optimizer.state
        state.clear()
        for weights in self.flats if step is not None else ():
            state[weights] = {
                "step": torch.tensor(float(step or 0), device=weights.device),
                **{moment: torch.zeros_like(weights) for moment in MOMENTS},
            }

    def _refresh_model(self) -> None:
        """Copy the fp32 weights into the partitions that the model computes with; small weights are gathered again."""
        zero = self.zero
        zero.checkpoint_event_prologue()
        for flat, weights in enumerate(self.flats):
            partition = zero.fp16_partitioned_groups_flat[flat]
            partition.data.copy_(weights.data)
            fresh = zero.unflatten(partition, zero.fp16_partitioned_groups[flat])
            for parameter, tensor in zip(zero.fp16_partitioned_groups[flat], fresh, strict=True):
                parameter.data = tensor.data
        zero.checkpoint_event_epilogue()


def _fill(stretch: Tensor, start: int, numel: int, column: str, saved: list[int], files: list[Any]) -> None:
    """Elements `start` onwards of a parameter, from the saved stretches; what lies behind its end is padding."""
    flat, offset, length, _ = saved
    end = min(start + len(stretch), numel)
    stretch.zero_()
    position = start
    while position < end:
        shard, inside = divmod(position, length)
        count = min(length - inside, end - position)
        first = offset + inside
        piece = files[shard].get_slice(f"{column}.{flat}")[first : first + count]
        stretch[position - start : position - start + count].copy_(piece)
        position += count


def _check_same_parameters(directory: Path, saved: Index, own: Index) -> None:
    sizes, own_sizes = ({name: entry[3] for name, entry in index.items()} for index in (saved, own))
    if sizes != own_sizes:
        names = sorted(name for name in sizes.keys() | own_sizes.keys() if sizes.get(name) != own_sizes.get(name))
        raise UserError(f"{directory} belongs to another model: {names[0]} differs; resume with the model it came from")
