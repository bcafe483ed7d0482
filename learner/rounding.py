"""How far apart the log-probabilities of two right computations may lie, by their type and the scale of the logits.

Let both compute the same tokens under the same weights, in another order or with other kernels. Each result of a layer
is rounded, by a relative error u; what arrives at the head is a hidden state with a relative error of c * u, where c
grows slowly with depth. A logit is the product of that state with a row of the head, and the rows point everywhere, so
that logits err independently, in proportion to their spread s (their standard deviation over the vocabulary, after
temperature). What all logits share cancels in a log-probability: it matters how far they spread, not how large they
are. The label's own logit errs by c * u * s and the mean over p of the others by at most as much, both with 1 - p:

    |difference of log p| ~ c * u * s * (1 - p),    mean over the tokens: c * u * scale,    scale = mean of s * (1 - p).

c was measured (`benchmarks.rounding`, docs/learner.md): 0.9 to 3 in random models of 2 to 24 layers, up to 7 in the
tiny trained one. The limit lies above all of these and far below a wrong position or a stale tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = {"bf16": 2.0**-8, "fp32": 2.0**-18}
"""Relative error u of one result of a layer. bf16 rounds it to 8 bits, while sums are kept in fp32. fp32 errs by 2^-24
in every addition, and sums of 4096 terms by the square root of that number times as much."""
FACTOR = 16.0
"""Largest c that rounding can explain."""
LOG_SOFTMAX = 1e-5
"""Error (nats) of the fp32 log-softmax of logits up to 100, which is left where every token is certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """Log-probabilities of a text that are to be compared with those of another computation."""

    logprobs: tuple[float, ...]
    """[T - 1] log-probability (nats, temperature 1) of each of its T tokens but the first."""
    scale: float
    """Mean over these tokens of spread times 1 - probability (nats), see above."""


def largest_gap(scale: float, *dtypes: str) -> float:
    """Return the largest mean difference (nats) of log-probabilities that rounding can explain.

    Args:
        scale: mean over the tokens of spread times 1 - probability, see above.
        dtypes: of both computations; the coarser one counts.
    """
    return FACTOR * max(UNIT[dtype] for dtype in dtypes) * scale + LOG_SOFTMAX
