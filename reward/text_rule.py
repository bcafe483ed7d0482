"""Exact match of texts after normalisation: case, width, articles, and punctuation that carries no meaning."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from reward.folding import fold

_LETTER = r"[^\W\d_]"
_ACRONYM = re.compile(rf"(?<!\w){_LETTER}(?:\.\s?{_LETTER}(?!\w))+\.?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INCHES = re.compile(r"(?<=\d)'(?=\d)")
_SIGN = re.compile(r"(?:\A\s*|(?<![\w)\].]))([-+])(?=[$€£¥]?\.?\d)|\A\s*([-+])(?=\s\d)")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.])\.(?=\d)")
_BETWEEN_CJK = re.compile(r"(?<=[\u3040-\u30ff\u3400-\u9fff])\s+(?=[\u3040-\u30ff\u3400-\u9fff])")
_ARTICLES = frozenset({"a", "an", "the"})
_MEANINGFUL = frozenset("%‰#@/")
_KEPT_POINT, _KEPT_MINUS = "\ue000", "\ue001"  # private use: stand for a decimal point and a minus sign


@dataclass(frozen=True, slots=True)
class TextKey:
    """A text without case, articles and meaningless punctuation."""

    words: tuple[str, ...]
    num_inner_a: int
    """Occurrences of the word "a" behind the first word, as an article or as a name ("vitamin A")."""
    has_name_a: bool
    """Whether one of them must be a name: it is a capital or ends the text."""


def texts_match(answer: str, truth: str) -> bool:
    """Return whether answer and truth have the same normal form; an empty one matches nothing."""
    ours, theirs = text_key(answer), _truth_key(truth)
    if not ours.words or ours.words != theirs.words:
        return False
    return not (ours.has_name_a or theirs.has_name_a) or ours.num_inner_a == theirs.num_inner_a


def text_key(text: str) -> TextKey:
    """Return the normal form of a text; signs, decimal points, percent, currency and mathematical symbols stay."""
    cased = _tokens(fold(text))
    words = [unicodedata.normalize("NFKC", word.casefold()) for word in cased]
    return TextKey(
        words=tuple(word for word in words if word not in _ARTICLES),
        num_inner_a=words[1:].count("a"),
        has_name_a="A" in cased[1:] or (len(words) > 1 and words[-1] == "a"),
    )


_truth_key = lru_cache(maxsize=1024)(text_key)


def _tokens(text: str) -> list[str]:
    text = text.replace(_KEPT_POINT, "\ufffd").replace(_KEPT_MINUS, "\ufffd")
    text = _ACRONYM.sub(lambda acronym: re.sub(r"[.\s]", "", acronym[0]), text)
    text = _THOUSANDS.sub("", _INCHES.sub(" ", text))
    text = _SIGN.sub(lambda sign: _KEPT_MINUS if "-" in sign[0] else " + ", text)
    text = _DECIMAL_POINT.sub(_KEPT_POINT, text)
    spaced = "".join(_spelling(char) for char in text)
    return _BETWEEN_CJK.sub("", spaced).split()


@lru_cache(maxsize=4096)
def _spelling(char: str) -> str:
    """Return how one character enters the normal form: itself, a word of its own, a space, or nothing."""
    if char in "'`":
        return ""
    if char == _KEPT_POINT:
        return "."
    if char == _KEPT_MINUS:
        return " - "
    if char == "&":
        return " and "
    category = unicodedata.category(char)
    if category[0] in "LNM":
        return char
    if char in _MEANINGFUL or (category[0] == "S" and char not in "`´¨¸"):
        return f" {char} "
    return " "
