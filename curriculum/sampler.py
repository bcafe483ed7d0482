"""Orders and draws: fresh tasks pass by pass, from one order or from every data source in turn, and the mix of a batch.

Every order is a function of (run seed, purpose, phase, pass), so a resumed run needs a position, not a generator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a random stream is for; it keeps the streams of one seed apart."""

    FRESH = 1
    POOL = 2
    REPLAY = 3
    HARD = 4
    SOURCE = 5


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the random stream of one purpose, phase and pass."""
    return np.random.default_rng([seed, int(purpose), *key])


def random_order(size: int, rng: np.random.Generator) -> list[int]:
    """Return the indices up to `size` in a random order: that of `size` exponential clocks."""
    return [int(index) for index in np.argsort(rng.standard_exponential(size), kind="stable")]


def spread_slots(num_slots: int, num_marked: int) -> list[bool]:
    """Mark `num_marked` of `num_slots` slots, as evenly as possible.

    Raises:
        ValueError: There are more marks than slots.
    """
    if not 0 <= num_marked <= num_slots:
        raise ValueError(f"cannot mark {num_marked} of {num_slots} slots")
    return [(slot + 1) * num_marked // num_slots > slot * num_marked // num_slots for slot in range(num_slots)]


class FreshSampler:
    """A sampler of tasks: each exactly once per pass, in a new order each pass.

    A task that is taken when its turn comes keeps it, and is drawn as soon as it is free.

    Args:
        task_ids: The tasks; at least one.
        seed: Run seed.
        phase: Index of the phase.
        source: Index of the data source that the tasks belong to; None for all tasks of the phase.
    """

    def __init__(self, task_ids: Sequence[str], *, seed: int, phase: int, source: int | None = None) -> None:
        self._task_ids = tuple(task_ids)
        self._seed = seed
        self._purpose = Purpose.FRESH if source is None else Purpose.SOURCE
        self._key = (phase,) if source is None else (phase, source)
        self._position = 0
        """Turns that have come, over all passes."""
        self._owed: list[str] = []
        """Tasks whose turn has come while they were taken, oldest first; once per turn."""
        self._orders: dict[int, NDArray[np.int64]] = {}
        """Orders of the running pass, and of the next one at the end of it."""

    @property
    def num_drawn(self) -> int:
        """Turns that were used, those of tasks that are gone included."""
        return self._position - len(self._owed)

    def draw(self, *, taken: Collection[str] = (), gone: Collection[str] = ()) -> str | None:
        """Return the next task; None if all are taken or gone.

        Args:
            taken: tasks that cannot be drawn at the moment.
            gone: tasks that are not drawn any more; their turns pass, so that a pass ends as with them.
        """
        self._owed = [task_id for task_id in self._owed if task_id not in gone]
        for index, task_id in enumerate(self._owed):
            if task_id not in taken:
                return self._owed.pop(index)
        passed: list[str] = []
        for position in range(self._position, self._end_of_next_pass):
            task_id = self._task_at(position)
            if task_id in gone:
                continue
            if task_id not in taken:
                self._owed += passed
                self._position = position + 1
                return task_id
            passed.append(task_id)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"position": self._position, "owed": list(self._owed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same tasks, seed and phase."""
        self._position, self._owed = state["position"] + 0, list(state["owed"])

    @property
    def _end_of_next_pass(self) -> int:
        return (self._position // len(self._task_ids) + 2) * len(self._task_ids)

    def _task_at(self, position: int) -> str:
        number, index = divmod(position, len(self._task_ids))
        if number not in self._orders:
            running = self._position // len(self._task_ids)
            self._orders = {old: order for old, order in self._orders.items() if old >= running}
            self._orders[number] = generator(self._seed, self._purpose, *self._key, number).permutation(
                len(self._task_ids)
            )
        return self._task_ids[int(self._orders[number][index])]


class FreshTasks:
    """The fresh tasks of a phase: passes over all of them, or over those of every data source.

    With several sources the next task comes from the source that was drawn from least so far in the phase, in the
    order of the sources among equals, so their counts differ by at most one; a source whose tasks are all taken or gone
    is passed over, and catches up. One whose tasks are fewer than its share of a batch gives each of them once.

    Args:
        sources: The tasks, source by source; every source has some.
        seed: Run seed.
        phase: Index of the phase.
    """

    def __init__(self, sources: Sequence[Sequence[str]], *, seed: int, phase: int) -> None:
        single = len(sources) == 1
        self._samplers = [
            FreshSampler(task_ids, seed=seed, phase=phase, source=None if single else index)
            for index, task_ids in enumerate(sources)
        ]
        self._num_given = [0] * len(sources)
        """Tasks that each source gave."""

    @property
    def num_drawn(self) -> int:
        """Turns that were used, those of tasks that are gone included."""
        return sum(sampler.num_drawn for sampler in self._samplers)

    def draw(self, *, taken: Collection[str] = (), gone: Collection[str] = ()) -> str | None:
        """Return the next task; None if all are taken or gone."""
        for index in sorted(range(len(self._samplers)), key=self._num_given.__getitem__):
            task_id = self._samplers[index].draw(taken=taken, gone=gone)
            if task_id is not None:
                self._num_given[index] += 1
                return task_id
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"samplers": [sampler.state_dict() for sampler in self._samplers], "num_given": list(self._num_given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same tasks, seed and phase."""
        for sampler, part in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state_dict(part)
        self._num_given = [number + 0 for _, number in zip(self._samplers, state["num_given"], strict=True)]
