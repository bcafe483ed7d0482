"""Detection of answers that repeat themselves to the end."""

from __future__ import annotations

from collections.abc import Sequence

MIN_REPEATS = 4
"""Repetitions of a period in a row, at least."""
MIN_TOKENS = 32
"""Tokens that the repetitions cover, at least: short ones (dashes, digits) are ordinary text."""
MAX_TOKENS = 4096
"""Tokens at the end of an answer that are searched."""


def ends_in_repetition(token_ids: Sequence[int]) -> bool:
    """Return whether a tail of at least `MIN_TOKENS` tokens consists of one period, `MIN_REPEATS` times or more.

    Linear time: the failure function of Knuth, Morris and Pratt on the reversed answer gives the smallest period of
    every tail. The last repetition may be cut anywhere.
    """
    tail = list(token_ids[-MAX_TOKENS:])[::-1]
    border = [0] * (len(tail) + 1)
    length = 0
    for size in range(2, len(tail) + 1):
        while length and tail[length] != tail[size - 1]:
            length = border[length]
        length += tail[length] == tail[size - 1]
        border[size] = length
        if size >= MIN_TOKENS and size >= MIN_REPEATS * (size - length):
            return True
    return False
