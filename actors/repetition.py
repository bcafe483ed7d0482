"""Whether an answer ended up repeating itself."""

from __future__ import annotations

from collections.abc import Sequence

MIN_REPEATS = 4
"""A period must come at least so often in a row."""
MIN_TOKENS = 32
"""The repetition must cover at least so many tokens: short runs (dashes, digits) are ordinary text."""
MAX_TOKENS = 4096
"""Only so many tokens from the end are looked at."""


def ends_in_repetition(token_ids: Sequence[int]) -> bool:
    """Whether some tail of at least `MIN_TOKENS` tokens consists of one period, `MIN_REPEATS` times or more.

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
