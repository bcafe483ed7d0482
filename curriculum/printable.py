"""Text from outside as one harmless line: data, keys, model answers and file names are shown, never obeyed."""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: line ends, and the escapes that move, colour and link
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction, line ends, width zero
    "\ud800-\udfff\U000e0000-\U000e007f]"  # lone surrogates, invisible tags
)
"""Characters that a terminal, a browser or an editor acts upon instead of showing them."""


def printable(text: str) -> str:
    r"""Return a text as one line in which nothing but ordinary characters is left.

    An escape character becomes `\x1b`, a line end `\n`, and a character that reverses the direction of writing
    `\u202e`. Every place that prints calls this on what it prints, once.
    """
    return _OBEYED.sub(lambda match: _escape(match[0]), text)


def printable_lines(text: str) -> str:
    """Return a text of several lines of our own, each of them printable."""
    return "\n".join(printable(line) for line in text.split("\n"))


def printable_json(text: str) -> str:
    r"""Return JSON text in which such characters are JSON escapes; it is read back to the same value."""
    return _OBEYED.sub(lambda match: match[0] if match[0] == "\n" else _json_escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
