"""Prompt lengths of a data set, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLengths:
    """Prompt lengths of the tasks of one phase, in tokens."""

    above_tokens: int
    """L_{k-1}: the phase takes longer prompts only."""
    max_tokens: int
    """L_k."""
    num_tasks: int
    min: int | None
    """None without tasks."""
    median: float | None
    """None without tasks."""
    mean: float | None
    """None without tasks."""
    max: int | None
    """None without tasks."""
    bin_edges: tuple[float, ...]
    """[B+1] edges between `above_tokens` and `max_tokens`, in tokens."""
    bin_counts: tuple[int, ...]
    """[B] tasks per bin: edge b < length <= edge b+1."""


def phase_lengths(
    tasks: Sequence[Task], phase_limits: Sequence[int], *, num_bins: int = 10
) -> tuple[PhaseLengths, ...]:
    """Measure the prompts of every phase.

    Args:
        tasks: Tasks with their phases.
        phase_limits: L_1 < L_2 < ... in tokens, as given to `load_tasks`.
        num_bins: Bins of each histogram.
    """
    lengths: list[list[int]] = [[] for _ in phase_limits]
    for task in tasks:
        lengths[task.phase].append(task.prompt_ids.size)
    bounds = pairwise([0, *phase_limits])
    return tuple(
        _lengths(low, high, np.asarray(phase, np.int64), num_bins)
        for (low, high), phase in zip(bounds, lengths, strict=True)
    )


def _lengths(low: int, high: int, lengths_N: NDArray[np.int64], num_bins: int) -> PhaseLengths:
    edges = np.linspace(low, high, num_bins + 1)
    bins_N = np.searchsorted(edges, lengths_N, side="left") - 1
    some = lengths_N.size > 0
    return PhaseLengths(
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
