"""Grounding precision: of the passages that the thinking takes from the document, the share found in the document.

A passage is a quotation (in quotation marks or behind `>`) or the rest of a sentence that says where it comes from
("according to the text, ..."). It is looked up by its words: a quotation as a run of words, else by pairs of
neighbouring words; a paraphrase by its content words inside one window of the document, where its numbers must be too.
Every step is a vectorised pass over the document per passage, so that 60K tokens take a fraction of a second.

Suffixes: `_D` words of the document, `_P` words of a passage.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MIN_QUOTED_WORDS = 4
"""Shorter quotations are names and terms, which prove nothing; a Han character counts as half a word."""
MIN_CONTENT_WORDS = 4
"""Paraphrases with fewer content words fit anywhere."""
CLOSE_QUOTE = 0.75
"""Share of neighbouring word pairs that a quotation must share with one window to count as found."""
CLOSE_PARAPHRASE = 0.6
"""Share of content words that a paraphrase must share with one window to count as found."""
MAX_PASSAGE_WORDS = 200
"""Longer passages are looked up by their first words."""
MAX_PASSAGES = 400
"""Passages of one response that are looked up, the first ones."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+(?:['’][^\W\d_\u3400-\u9fff]+)?")
_QUOTED = re.compile(
    r'"([^"\n]{8,2000})"|“([^“”\n]{8,2000})”|「([^「」\n]{4,2000})」|『([^『』\n]{4,2000})』|«([^«»\n]{8,2000})»'
    r"|^[ \t]{0,3}>[ \t]?([^\n]{8,2000})$",
    re.MULTILINE,
)
_ELLIPSIS = re.compile(r"\.\.\.+|…+|\[[^\[\]\n]{0,40}\]")
_SENTENCE = re.compile(r"(?:[^.!?。！？\n]|[.](?=\d))+")
_SOURCE = r"(?:text|passage|document|article|context|report|paper|table|story|paragraph|section|transcript|filing)"
_ATTRIBUTION = re.compile(
    rf"\b(?:according to|as (?:stated|mentioned|noted|described|given|shown) in) (?:the|this) (?:\w+ )?{_SOURCE}\b,?"
    rf"|\b(?:in|from) the (?:\w+ )?{_SOURCE},(?: it (?:says|states|mentions|notes|shows) that\b)?"
    rf"|\b(?:the|this) (?:\w+ )?{_SOURCE} (?:also |clearly |explicitly )?(?:says|states|mentions|notes|shows|describes|"
    r"reports|indicates|explains)(?: that\b)?"
    r"|根据(?:文本|文中|文章|原文|材料|表格|段落|报告|文档)[^，,：:]{0,12}[，,：:]"
    r"|(?:文中|文章|原文|文本|材料|文档|报告)(?:里|中)?(?:明确|也|还)?(?:提到|指出|写道|说|显示|提及|描述|记载|表明)了?[，,：:]?",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(
    r"\b(?:if|whether|does|do|did|check|find|need|should|must|let|maybe|perhaps)\b|是否|如果|需要", re.IGNORECASE
)
"""Words that turn a claim into a plan or a doubt where they stand before the source."""
_STOPWORDS = frozenset(
    "a an the of in on at to for from by with and or but not is are was were be been being it its this that these "
    "those as which who whom whose what when where how there their they them he she his her him i we you our your my "
    "so if then than also has have had do does did would could should will can may might must about into over after "
    "before 的 了 是 在 和 与 也 都 而 及 其 这 那 有 为 于 以 之 被 把 从 到 就 还 又".split()
)


class PassageKind(StrEnum):
    """How the thinking presents a passage."""

    QUOTE = "quote"
    PARAPHRASE = "paraphrase"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One passage of the thinking, and where the document has it. Offsets are characters, end exclusive."""

    kind: PassageKind
    start: int
    end: int
    similarity: float
    """Share of the passage that the best window of the document holds, in [0, 1]."""
    document_start: int | None
    """None where the passage is not found."""
    document_end: int | None

    @property
    def found(self) -> bool:
        """Whether the document has it."""
        return self.document_start is not None


def grounding_precision(passages: Sequence[Passage]) -> float | None:
    """Return the share of the passages that the document has; None where there is no passage."""
    return sum(passage.found for passage in passages) / len(passages) if passages else None


class DocumentIndex:
    """The words of a document with their places; built once, searched for every response about the document."""

    def __init__(self, document: str) -> None:
        """Index a document; time and memory are linear in its length."""
        words = list(_WORD.finditer(document))
        self._ids: dict[str, int] = {}
        ids = self._ids
        self._words_D = np.fromiter((ids.setdefault(_key(word[0]), len(ids)) for word in words), np.int64, len(words))
        self._starts_D = np.fromiter((word.start() for word in words), np.int64, len(words))
        self._ends_D = np.fromiter((word.end() for word in words), np.int64, len(words))
        self._order_D = np.argsort(self._words_D, kind="stable")
        self._bounds_V = np.searchsorted(self._words_D[self._order_D], np.arange(len(ids) + 1))
        self._pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def find_run(self, words: Sequence[str]) -> tuple[int, int] | None:
        """Return the characters (start, end) of the first place with these words in a row; None without one."""
        ids_P = self._lookup(words)
        if not len(ids_P) or (ids_P < 0).any() or len(ids_P) > len(self._words_D):
            return None
        rarest = int(np.argmin([self._count(word) for word in ids_P]))
        places = self._places(ids_P[rarest]) - rarest
        places = places[(places >= 0) & (places <= len(self._words_D) - len(ids_P))]
        for offset, word in enumerate(ids_P):
            places = places[self._words_D[places + offset] == word]
        return self._characters(int(places[0]), len(ids_P)) if len(places) else None

    def best_window_of_pairs(self, words: Sequence[str]) -> tuple[float, tuple[int, int]]:
        """Return (share of the distinct neighbouring pairs in the best window, its characters)."""
        ids_P = self._lookup(words)
        keys = {int(a) * (len(self._ids) + 1) + int(b) for a, b in pairwise(ids_P)}
        known = [self._pair_places(key) for key in keys if key >= 0]
        found, window = self._best_window([places for places in known if len(places)], len(words) + 4, reach=1)
        return (found / len(keys) if keys else 0.0), window

    def best_window_of_words(self, words: Sequence[str], width: int) -> tuple[float, tuple[int, int], set[str]]:
        """Return (share of the distinct words in the best window, its characters, those words that it holds)."""
        distinct = dict.fromkeys(words)
        places = [self._places(word) for word in self._lookup(distinct) if word >= 0]
        found, (start, end) = self._best_window(places, width)
        inside = (self._starts_D >= start) & (self._ends_D <= end)
        held = set(self._words_D[inside].tolist())
        return (found / len(distinct) if distinct else 0.0), (start, end), {w for w in distinct if self._id(w) in held}

    def _best_window(
        self, places: Sequence[NDArray[np.int64]], width: int, *, reach: int = 0
    ) -> tuple[int, tuple[int, int]]:
        """Return (most of the sorted place lists that one window of `width` words touches, characters they span).

        `reach` is the number of words behind its place that an entry covers.
        """
        if not places:
            return 0, (0, 0)
        size = len(self._words_D)
        opens: list[NDArray[np.int64]] = []
        closes: list[NDArray[np.int64]] = []
        for found in places:  # window starts s with s <= place < s + width, counted once per list
            first = np.maximum(found - width + 1, 0)
            first[1:] = np.maximum(first[1:], found[:-1] + 1)
            opens.append(first)
            closes.append(found + 1)
        change = np.bincount(np.concatenate(opens), minlength=size + 1) - np.bincount(
            np.concatenate(closes), minlength=size + 1
        )
        touched = np.cumsum(change[:size])
        start = int(np.argmax(touched))
        inside = np.concatenate([found[(found >= start) & (found < start + width)] for found in places])
        first, last = int(inside.min()), int(inside.max()) + reach
        return int(touched[start]), (int(self._starts_D[first]), int(self._ends_D[last]))

    def _pair_places(self, key: int) -> NDArray[np.int64]:
        if self._pairs is None:
            pairs = self._words_D[:-1] * (len(self._ids) + 1) + self._words_D[1:]
            order = np.argsort(pairs, kind="stable")
            self._pairs = pairs[order], order
        pairs, order = self._pairs
        low, high = np.searchsorted(pairs, [key, key + 1])
        return order[low:high]

    def _lookup(self, words: Sequence[str] | dict[str, None]) -> NDArray[np.int64]:
        return np.array([self._id(word) for word in words], np.int64)

    def _id(self, word: str) -> int:
        return self._ids.get(word, -1)

    def _count(self, word: np.int64) -> int:
        return int(self._bounds_V[word + 1] - self._bounds_V[word])

    def _places(self, word: np.int64) -> NDArray[np.int64]:
        return self._order_D[self._bounds_V[word] : self._bounds_V[word + 1]]

    def _characters(self, first: int, num_words: int) -> tuple[int, int]:
        return int(self._starts_D[first]), int(self._ends_D[first + num_words - 1])


def ground(thinking: str, document: DocumentIndex, *, question: str = "") -> tuple[Passage, ...]:
    """Look up the passages of the thinking in the document; what only repeats the question is no passage."""
    asked = DocumentIndex(question)
    passages: list[Passage] = []
    for kind, start, end in _passages(thinking):
        words = [_key(word) for word in _WORD.findall(thinking[start:end])][:MAX_PASSAGE_WORDS]
        if not _is_long_enough(kind, words) or asked.find_run(words) is not None:
            continue
        find = _find_quote if kind is PassageKind.QUOTE else _find_paraphrase
        similarity, place = find(words, document)
        passages.append(
            Passage(
                kind=kind,
                start=start,
                end=end,
                similarity=similarity,
                document_start=place[0] if place else None,
                document_end=place[1] if place else None,
            )
        )
        if len(passages) == MAX_PASSAGES:
            break
    return tuple(passages)


def _passages(thinking: str) -> Iterator[tuple[PassageKind, int, int]]:
    """Yield (kind, start, end) in the order of the text.

    An attributed sentence with a quotation in it is that quotation.
    """
    quotes = [(PassageKind.QUOTE, *span) for match in _QUOTED.finditer(thinking) for span in _pieces(match)]
    quote_starts = np.array([match.start() for match in _QUOTED.finditer(thinking)], np.int64)
    paraphrases: list[tuple[PassageKind, int, int]] = []
    for sentence in _SENTENCE.finditer(thinking):
        source = _ATTRIBUTION.search(sentence[0])
        if source is None:
            continue
        low, high = np.searchsorted(quote_starts, [sentence.start(), sentence.end()])
        before = thinking[sentence.start() : sentence.start() + source.start()]
        if _HYPOTHESIS.search(before) or thinking[sentence.end() : sentence.end() + 1] in ("?", "？"):
            continue
        start = sentence.start() + source.end()
        if len(_WORD.findall(thinking[start : sentence.end()])) < MIN_CONTENT_WORDS <= len(_WORD.findall(before)):
            span = sentence.start(), sentence.start() + source.start()  # "It rose to 5 %, according to the report"
        else:
            span = start, sentence.end()
        if low == high:
            paraphrases.append((PassageKind.PARAPHRASE, *span))
    return iter(sorted([*quotes, *paraphrases], key=lambda passage: passage[1]))


def _pieces(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Yield the parts of a quotation, cut where it leaves words out."""
    group = match.lastindex or 0
    start, end = match.span(group)
    for gap in _ELLIPSIS.finditer(match.string, start, end):
        if gap.start() > start:
            yield start, gap.start()
        start = gap.end()
    if end > start:
        yield start, end


def _is_long_enough(kind: PassageKind, words: Sequence[str]) -> bool:
    if kind is PassageKind.PARAPHRASE:
        return len(_content(words)) >= MIN_CONTENT_WORDS
    return sum(0.5 if _is_han(word) else 1.0 for word in words) >= MIN_QUOTED_WORDS


def _find_quote(words: Sequence[str], document: DocumentIndex) -> tuple[float, tuple[int, int] | None]:
    exact = document.find_run(words)
    if exact is not None:
        return 1.0, exact
    share, window = document.best_window_of_pairs(words)
    return share, window if share >= CLOSE_QUOTE else None


def _find_paraphrase(words: Sequence[str], document: DocumentIndex) -> tuple[float, tuple[int, int] | None]:
    content = _content(words)
    share, window, inside = document.best_window_of_words(content, 2 * len(words) + 10)
    has_numbers = all(word in inside for word in content if word[0].isdigit())
    return share, window if share >= CLOSE_PARAPHRASE and has_numbers else None


def _content(words: Sequence[str]) -> list[str]:
    return [word for word in words if word not in _STOPWORDS]


def _is_han(word: str) -> bool:
    return len(word) == 1 and "\u3400" <= word <= "\u9fff"


def _key(word: str) -> str:
    """Return a word without case, width, possessive and thousands separators."""
    if not word.isascii():
        word = unicodedata.normalize("NFKC", word).replace("’", "'")
    word = word.casefold()
    if word[0].isdigit():
        return word.replace(",", "")
    return word.removesuffix("'s")
