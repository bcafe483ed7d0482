"""Controls of an accuracy: the same questions without their documents, or with those of others. Pure functions.

A model that answers as well without the document, or with a wrong one, guesses or remembers; it does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Literal, assert_never, get_args

Control = Literal["no_document", "other_document"]
"""`no_document` asks the question alone; `other_document` shows the document of another question."""
CONTROLS: Final[tuple[Control, ...]] = get_args(Control)
NUM_NEIGHBOURS = 8
"""Documents of the nearest lengths among which `other_document` draws."""


def documents_under(control: Control, documents: Sequence[str], *, seed: int) -> tuple[str | None, ...]:
    """Return the document with which each question is asked under a control, in order.

    Another document is one whose text differs in more than case and white space, drawn by the seed among the
    `NUM_NEIGHBOURS` of the nearest lengths, so that prompts stay about as long as they were. Questions that share a
    document share the other one as well.

    Args:
        control: what becomes of the documents.
        documents: the document of each question, "" where it has none.
        seed: of the draws; the same seed and documents give the same result.

    Returns:
        "" for `no_document`; for `other_document` None where there is no other one, or the question has none itself.
    """
    match control:
        case "no_document":
            return ("",) * len(documents)
        case "other_document":
            return _others(documents, Random(seed))
        case _:
            assert_never(control)


def _others(documents: Sequence[str], rng: Random) -> tuple[str | None, ...]:
    first_of = {_folded(document): document for document in reversed(documents)}
    first_of.pop("", None)
    by_length = sorted(first_of, key=lambda folded: (len(first_of[folded]), folded))
    if len(by_length) < 2:
        return (None,) * len(documents)
    other_of = {folded: first_of[_neighbour(by_length, rank, rng)] for rank, folded in enumerate(by_length)}
    return tuple(other_of.get(_folded(document)) for document in documents)


def _neighbour(by_length: Sequence[str], rank: int, rng: Random) -> str:
    """Draw one of the documents beside that of a rank; at an end of the order they lie on one side."""
    num_others = min(NUM_NEIGHBOURS, len(by_length) - 1)
    first = min(max(0, rank - num_others // 2), len(by_length) - 1 - num_others)
    others = [index for index in range(first, first + num_others + 1) if index != rank]
    return by_length[rng.choice(others)]


def _folded(document: str) -> str:
    return " ".join(document.split()).casefold()
