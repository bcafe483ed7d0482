"""What a data set looks like: counts per source, lengths per phase, rejects by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curriculum.dataset import TaskSet
from curriculum.rejects import count_reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLengths:
    """Prompt lengths of the tasks of one phase, in tokens."""

    phase: int
    above_tokens: int
    """L_{k-1}: the phase takes longer prompts only."""
    max_tokens: int
    """L_k."""
    num_tasks: int
    min: int | None
    """None without tasks, like the three below."""
    median: float | None
    mean: float | None
    max: int | None
    bin_edges: tuple[float, ...]
    """[B+1] edges between `above_tokens` and `max_tokens`, in tokens."""
    bin_counts: tuple[int, ...]
    """[B] tasks per bin: edge b < length <= edge b+1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """The numbers of `qwenlong data inspect`."""

    num_tasks: int
    num_rejects: int
    data_sources: dict[str, int]
    """Tasks per data source, most frequent first."""
    phases: tuple[PhaseLengths, ...]
    rejects: dict[str, int]
    """Rejects per reason, most frequent first."""


def summarise(task_set: TaskSet, phase_limits: Sequence[int], *, num_bins: int = 10) -> DatasetSummary:
    """Count the tasks of a set.

    Args:
        task_set: Tasks with their phases, and rejects.
        phase_limits: L_1 < L_2 < ... in tokens, as given to `load_tasks`.
        num_bins: Bins of each histogram.
    """
    bounds = enumerate(pairwise([0, *phase_limits]))
    lengths: list[list[int]] = [[] for _ in phase_limits]
    for task in task_set.tasks:
        lengths[task.phase].append(task.prompt_ids.size)
    return DatasetSummary(
        num_tasks=len(task_set.tasks),
        num_rejects=len(task_set.rejects),
        data_sources=dict(Counter(task.data_source for task in task_set.tasks).most_common()),
        phases=tuple(_phase_lengths(k, low, high, np.asarray(lengths[k]), num_bins) for k, (low, high) in bounds),
        rejects=count_reasons(task_set.rejects),
    )


def _phase_lengths(phase: int, low: int, high: int, lengths_N: NDArray[np.int64], num_bins: int) -> PhaseLengths:
    edges = np.linspace(low, high, num_bins + 1)
    bins_N = np.searchsorted(edges, lengths_N, side="left") - 1
    some = lengths_N.size > 0
    return PhaseLengths(
        phase=phase,
        above_tokens=low,
        max_tokens=high,
        num_tasks=lengths_N.size,
        min=int(lengths_N.min()) if some else None,
        median=float(np.median(lengths_N)) if some else None,
        mean=float(lengths_N.mean()) if some else None,
        max=int(lengths_N.max()) if some else None,
        bin_edges=tuple(edges.tolist()),
        bin_counts=tuple(np.bincount(bins_N, minlength=num_bins).tolist()) if some else (0,) * num_bins,
    )
