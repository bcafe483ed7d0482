"""Batches of the warm-up: every demonstration once per epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curriculum.task import Demonstration


class DemonstrationBatches(Sequence[list[Demonstration]]):
    """All batches of all epochs, by index, so that a resumed warm-up continues where it stopped.

    The last batch of an epoch may be smaller.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], *, batch_size: int, epochs: int, seed: int) -> None:
        """Take the demonstrations.

        Raises:
            ValueError: there are none.
        """
        if not demonstrations:
            raise ValueError("data.sft has no usable demonstration; check its rejects or set sft.epochs=0")
        self._demonstrations = demonstrations
        self._batch_size = batch_size
        self._batches_per_epoch = -(-len(demonstrations) // batch_size)
        self._num_batches = self._batches_per_epoch * epochs
        self._seed = seed

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, index: int) -> list[Demonstration]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, position = divmod(index, self._batches_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._demonstrations))
        chosen = order[position * self._batch_size : (position + 1) * self._batch_size]
        return [self._demonstrations[i] for i in chosen]
