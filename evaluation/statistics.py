"""Numbers of an evaluation: avg@n with its interval, pass@k, macro averages. Pure functions.

Suffixes: `_I` items of a benchmark, `_N` samples of an item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PASS_AT = (1, 2, 4, 8, 16)
"""The k of pass@k that are reported where every item has at least k samples."""
NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate P(at least one of k samples is right) without bias: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., "Evaluating Large Language Models Trained on Code" (2021), Eq. 1.

    Raises:
        ValueError: k exceeds the number of samples, or the counts contradict each other.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} right among {num_samples} samples is not defined; sample more")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_pass_at_k(counts_I: Sequence[tuple[int, int]], k: int) -> float | None:
    """Average pass@k over items, each given as (samples, right ones); None where an item has fewer than k samples."""
    if not counts_I or min(num_samples for num_samples, _ in counts_I) < k:
        return None
    return float(np.mean([pass_at_k(num_samples, num_correct, k) for num_samples, num_correct in counts_I]))


def bootstrap_mean(values_I: Sequence[float], *, seed: int) -> Estimate:
    """Average over items, with the percentile interval of a bootstrap that resamples items, not samples.

    Raises:
        ValueError: there is no item.
    """
    return bootstrap_macro([values_I], seed=seed)


def bootstrap_macro(benchmarks: Sequence[Sequence[float]], *, seed: int) -> Estimate:
    """Average the means of the benchmarks without weights; the bootstrap resamples items within each benchmark.

    Raises:
        ValueError: there is no benchmark, or one without items.
    """
    if not benchmarks or not all(len(values) for values in benchmarks):
        raise ValueError("a benchmark without items has no accuracy; leave it out")
    rng = np.random.default_rng(seed)
    means: NDArray[np.float64] = np.mean(
        [_resampled_means(np.asarray(values, np.float64), rng) for values in benchmarks], axis=0
    )
    low, high = (float(np.quantile(means, share)) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    mean = float(np.mean([np.mean(values) for values in benchmarks]))
    return Estimate(mean=mean, low=low, high=high)


def _resampled_means(values_I: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the [NUM_RESAMPLES] means of items drawn with replacement."""
    drawn = rng.integers(len(values_I), size=(NUM_RESAMPLES, len(values_I)))
    return values_I[drawn].mean(axis=1)
