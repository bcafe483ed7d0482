"""Overlong shaping: a soft penalty that grows with the excess length of a response (paper Eq. 7)."""

from __future__ import annotations


def overlong_penalty(num_tokens: int, *, max_tokens: int, cache_tokens: int) -> float:
    """Return what is added to the reward of a response of `num_tokens` tokens, in [-1, 0].

    Zero up to L_max - L_cache, then linear, -1 at L_max and beyond, with L_max = `max_tokens` and
    L_cache = `cache_tokens`.

    Raises:
        ValueError: where L_cache is not in 1..L_max or the length is negative.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(f"cache_tokens={cache_tokens} must lie in 1..max_tokens={max_tokens}")
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} is negative; pass the number of response tokens")
    start = max_tokens - cache_tokens
    if num_tokens <= start:
        return 0.0
    if num_tokens > max_tokens:
        return -1.0
    return (start - num_tokens) / cache_tokens
