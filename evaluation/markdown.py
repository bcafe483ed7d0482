"""Text from outside in a report: names of models, files, data sources."""

from __future__ import annotations


def cell(text: str) -> str:
    """Return text as one table cell: no line break, column, tag or markup of its own."""
    text = " ".join(text.split())
    for mark in "\\|`*_[]<>":
        text = text.replace(mark, "\\" + mark)
    return text
