"""Folding: one spelling for characters and mark-up that mean the same (NFKC, quotes, dashes, spaces, plain LaTeX)."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT_RUN = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR_FRACTION = re.compile("[¼½¾⅐-⅞]")
_MARKS_OF_OWNERSHIP = re.compile("[©®™℠]")

_QUOTES = {
    "‘": "'",
    "’": "'",
    "‚": "'",
    "‛": "'",
    "´": "'",
    "′": "'",
    "ʼ": "'",
    "ʹ": "'",
    "‹": "'",
    "›": "'",
} | dict.fromkeys("“”„‟″«»「」『』〝〞〟", '"')
_DASHES = dict.fromkeys(
    "\u058a\u05be\u1400\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d",
    "-",
)
"""Dashes of all scripts (Unicode category Pd)."""
_SIGNS = {"−": "-", "⁄": "/", "∕": "/"}
_CONTROLS = {chr(code): " " for code in (*range(32), 127) if chr(code) not in "\t\n\r"}
_TABLE = {ord(old): new for old, new in (_QUOTES | _DASHES | _SIGNS | _CONTROLS).items()}

_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")

_MATH_DOLLAR = re.compile(r"(?<!\\)\$")
_LATEX_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s?\{([^{}]*)\}", r"\1"),
        (r"(?<=[\d.])\s*\\[dtc]?frac", r" \\frac"),
        (r"\\[dtc]?frac\s*\{\s*([\w.,%]*)\s*\}\s*\{\s*([\w.,%]*)\s*\}", r"\1/\2"),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2"),
        (r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}\s*(\d)|(\d)\s*\{\s*(\d+)\s*\})", r"\1\3/\2\4"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\[\[\]()]", ""),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;: ]|\\q?quad(?![A-Za-z])", " "),
        (r"\\([%$#&_{}])", r"\1"),
        (r"\^\{([^{}]*)\}", r"^\1"),
    )
)


def fold(text: str) -> str:
    """Write characters of one meaning in one spelling; case, words and ASCII punctuation stay.

    Full-width and compatibility forms follow NFKC, except that a superscript stays a power (10² is `10^2`, not 102)
    and a vulgar fraction stays apart from the integer before it. Typographic quotes, dashes and minus signs become
    ASCII, invisible characters are removed, control characters become spaces and lone surrogates U+FFFD.
    """
    if not text.isascii():
        text = _fold_unicode(text)
    text = text.translate(_TABLE)
    return _plain_latex(text) if "\\" in text or "{,}" in text else text


def _fold_unicode(text: str) -> str:
    text = _INVISIBLE.sub("", _SURROGATE.sub("\ufffd", text))
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = _VULGAR_FRACTION.sub(lambda fraction: " " + fraction[0], text)
    text = _MARKS_OF_OWNERSHIP.sub("", text).translate(_TABLE)
    return unicodedata.normalize("NFKC", text)


def _plain_latex(text: str) -> str:
    r"""Return LaTeX as plain text. What was apart stays apart: `3\frac{1}{2}` is `3 1/2`."""
    dollars = _MATH_DOLLAR.findall(text)
    if dollars and len(dollars) % 2 == 0:
        text = _MATH_DOLLAR.sub("", text)
    for pattern, replacement in _LATEX_RULES:
        text = pattern.sub(replacement, text)
    return text
