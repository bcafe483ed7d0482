"""The parts by which accuracies are told apart: data sources and lengths of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from curriculum.metric import member
from evaluation.summary import length_range, length_ranges

_T = TypeVar("_T")

MAX_SOURCES = 32
"""Data sources with numbers of their own, the largest ones; data may name any number of them."""


def parts(entries: Sequence[_T], *, sources: Sequence[str], prompt_tokens: Sequence[int]) -> dict[str, list[_T]]:
    """Return the entries by the members of a family of metrics: `source:hotpotqa`, `length:4K-8K`.

    Args:
        entries: what is told apart.
        sources: the data source of each entry.
        prompt_tokens: the length of the prompt of each entry; ranges without entries are left out.
    """
    ranges = [length_range(tokens) for tokens in prompt_tokens]
    return {
        **{member(name, of="source"): _where(entries, sources, name) for name in _largest(sources)},
        **{
            member(name.replace(" ", "-"), of="length"): _where(entries, ranges, name)
            for name in length_ranges()
            if name in ranges
        },
    }


def _largest(sources: Sequence[str]) -> list[str]:
    """Return the names that occur most, by name; of those that occur as often the first ones by name."""
    counts = Counter(sources)
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MAX_SOURCES])


def _where(entries: Sequence[_T], names: Sequence[str], wanted: str) -> list[_T]:
    return [entry for entry, name in zip(entries, names, strict=True) if name == wanted]
