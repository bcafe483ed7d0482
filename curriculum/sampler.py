"""Orders and draws: fresh tasks pass by pass, weighted orders without replacement, and the mix of a batch.

Every order is a function of (run seed, purpose, phase, pass), so a resumed run needs a position, not a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a random stream is for; it keeps the streams of one seed apart."""

    FRESH = 1
    POOL = 2
    REPLAY = 3


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the random stream of one purpose, phase and pass."""
    return np.random.default_rng([seed, int(purpose), *key])


def weighted_order(weights_N: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Draw an order of the indices, each next one with a probability proportional to its weight.

    A race of exponential clocks with rates `weights_N`: the same law as repeated draws without replacement
    (Efraimidis and Spirakis 2006). Equal weights give a uniform shuffle; a prefix is a weighted sample.

    Args:
        weights_N: [N] positive weights.
        rng: Source of randomness; N draws are taken.

    Raises:
        ValueError: A weight is not positive.
    """
    rates_N = np.asarray(weights_N, dtype=np.float64)
    if not bool(np.all(rates_N > 0)):
        raise ValueError(f"weights must be positive, got a minimum of {rates_N.min()}")
    finish_times_N = rng.standard_exponential(rates_N.size) / rates_N
    return [int(index) for index in np.argsort(finish_times_N, kind="stable")]


def spread_slots(num_slots: int, num_marked: int) -> list[bool]:
    """Mark `num_marked` of `num_slots` slots, as evenly as possible.

    Raises:
        ValueError: There are more marks than slots.
    """
    if not 0 <= num_marked <= num_slots:
        raise ValueError(f"cannot mark {num_marked} of {num_slots} slots")
    return [(slot + 1) * num_marked // num_slots > slot * num_marked // num_slots for slot in range(num_slots)]


class FreshSampler:
    """A sampler of the tasks of one phase: each exactly once per pass, in a new order each pass.

    Args:
        task_ids: Tasks of the phase; at least one.
        seed: Run seed.
        phase: Index of the phase.
    """

    def __init__(self, task_ids: Sequence[str], *, seed: int, phase: int) -> None:
        self._task_ids = tuple(task_ids)
        self._seed = seed
        self._phase = phase
        self._num_drawn = 0
        self._order_N, self._order_pass = self._shuffled(0), 0

    @property
    def epochs(self) -> float:
        """Passes over the phase so far."""
        return self._num_drawn / len(self._task_ids)

    def draw(self, num_tasks: int) -> list[str]:
        """Return the next `num_tasks` task ids; the last pass may be left unfinished."""
        return [self._draw_one() for _ in range(num_tasks)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"num_drawn": self._num_drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same tasks, seed and phase."""
        self._num_drawn = state["num_drawn"]

    def _draw_one(self) -> str:
        current_pass, position = divmod(self._num_drawn, len(self._task_ids))
        if current_pass != self._order_pass:
            self._order_N, self._order_pass = self._shuffled(current_pass), current_pass
        self._num_drawn += 1
        return self._task_ids[int(self._order_N[position])]

    def _shuffled(self, current_pass: int) -> NDArray[np.int64]:
        rng = generator(self._seed, Purpose.FRESH, self._phase, current_pass)
        return rng.permutation(len(self._task_ids))
