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
_BETWEEN_NUMBERS = re.compile(r"(?<=\d)\s*([-:,;])\s*(?=\d)")
_DATE_COMMA = re.compile(
    r"(\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+\d{1,2}(?:st|nd|rd|th)?)\s*,(?=\s*\d{4}\b)",
    re.IGNORECASE,
)
_INTERVAL = re.compile(r"([\[(])(\s*[-+]?[\d.]+\s*,\s*[-+]?(?:[\d.]+|∞)\s*)([\])])")
_QUOTE_OF_UNIT = re.compile(r"(?<=\d)\s?['\"](?!\w)")
_FIRST_ARTICLE = re.compile(r"\W*(?P<article>an?|the)\s+(?P<next>[^\W\d_])(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_ARTICLES = frozenset({"a", "an", "the"})
_MEANINGFUL = frozenset("%‰#@/")
_KEPT = dict(zip(".-:,;()[]'\"", map(chr, range(0xE000, 0xE00B)), strict=True))
"""Punctuation with a meaning where it stands (a decimal point, a sign, a separator of numbers, the bracket of an
interval, feet and inches) and the private character that stands for it meanwhile."""
_KEPT_SPELLINGS = {kept: "." if char == "." else f" {char} " for char, kept in _KEPT.items()}
_RESERVED = dict.fromkeys(map(ord, _KEPT.values()), "\ufffd")


@dataclass(frozen=True, slots=True)
class TextKey:
    """A text without case, articles and meaningless punctuation."""

    words: tuple[str, ...]
    num_inner_a: int
    """Occurrences of the word "a" behind the first word, as an article or as a name ("vitamin A")."""
    has_name_a: bool
    """Whether one of them must be a name: it is a capital or ends the text."""


def texts_match(answer: str, truth: str) -> bool:
    """Return whether the answer is the truth up to normalisation; a text that normalises to nothing matches nothing."""
    ours, theirs = text_key(answer), _truth_key(truth)
    if not ours.words or ours.words != theirs.words:
        return False
    return not (ours.has_name_a or theirs.has_name_a) or ours.num_inner_a == theirs.num_inner_a


def text_key(text: str) -> TextKey:
    """Return the normal form of a text.

    Signs, decimal points, separators between numbers, brackets of intervals, percent, currency and mathematical symbols
    are kept.
    """
    text = fold(text)
    cased = _tokens(text)
    words = [unicodedata.normalize("NFKC", word.casefold()) for word in cased]
    first = words[:1] if words[:1] in (["a"], ["an"]) and not _begins_with_article(text) else []
    others = [word for word in words[len(first) :] if word not in _ARTICLES]
    return TextKey(
        words=tuple(first + others) if others else (),
        num_inner_a=words[1:].count("a"),
        has_name_a="A" in cased[1:] or (len(words) > 1 and words[-1] == "a"),
    )


def _begins_with_article(text: str) -> bool:
    """Return whether a first "a" or "an" is an article and no letter or name.

    It is in "A Tale of Two Cities", but not in "A. Smith", "A-10", "An Wang" or "A Smith".
    """
    first = _FIRST_ARTICLE.match(text)
    if first is None:
        return False
    article, following = first["article"], first["next"]
    if article.islower():
        return True
    fits = (
        following.lower() in "aeiouh" or first["rest"][:1].isupper()
        if len(article) == 2
        else following.lower() not in "ai"
    )
    return fits and (following.islower() or len(first["rest"].split()) > 1)


_truth_key = lru_cache(maxsize=1024)(text_key)


def _tokens(text: str) -> list[str]:
    text = text.translate(_RESERVED)
    text = _ACRONYM.sub(lambda acronym: re.sub(r"[.\s]", "", acronym[0]), text)
    text = _INTERVAL.sub(lambda ends: _KEPT[ends[1]] + ends[2] + _KEPT[ends[3]], text)
    if text.count('"') % 2 or text.count("'") % 2:
        text = _QUOTE_OF_UNIT.sub(lambda quote: _KEPT[quote[0].strip()], text)
    text = _THOUSANDS.sub("", _INCHES.sub(" ", text))
    text = _SIGN.sub(lambda sign: _KEPT["-"] if "-" in sign[0] else " + ", text)
    text = _DECIMAL_POINT.sub(_KEPT["."], text)
    text = _BETWEEN_NUMBERS.sub(lambda separator: _KEPT[separator[1]], _DATE_COMMA.sub(r"\1 ", text))
    spaced = "".join(_spelling(char) for char in text)
    return _BETWEEN_CJK.sub("", spaced).split()


@lru_cache(maxsize=4096)
def _spelling(char: str) -> str:
    """Return how one character enters the normal form: as itself, as a word of its own, as a space, or not at all."""
    if char in "'`":
        return ""
    if char in _KEPT_SPELLINGS:
        return _KEPT_SPELLINGS[char]
    if char == "&":
        return " and "
    category = unicodedata.category(char)
    if category[0] in "LNM":
        return char
    if char in _MEANINGFUL or (category[0] == "S" and char not in "`´¨¸"):
        return f" {char} "
    return " "
