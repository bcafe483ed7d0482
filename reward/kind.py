"""The kind of an answer decides the rule that compares it; the data source decides the kind."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class AnswerKind(StrEnum):
    """How an answer is compared with the truth."""

    TEXT = "text"
    NUMERIC = "numeric"
    CHOICE = "choice"


KIND_PREFIXES = (("docmath", AnswerKind.NUMERIC), ("long_toc_choices", AnswerKind.CHOICE))
"""Data sources that start like this hold answers of this kind; every other data source holds text."""


def kind_of(data_source: str, overrides: Mapping[str, AnswerKind] | None = None) -> AnswerKind:
    """Return the kind of the answers of a data source; an override names the data source exactly."""
    if overrides and data_source in overrides:
        return overrides[data_source]
    name = data_source.casefold()
    return next((kind for prefix, kind in KIND_PREFIXES if name.startswith(prefix)), AnswerKind.TEXT)
