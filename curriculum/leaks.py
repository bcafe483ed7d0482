"""Leaks: questions that share document or wording with a set that a model is trained on.

Texts are compared by their words: Unicode NFKC, case folded, everything but letters and digits a gap; a character of a
script that is written without spaces (Chinese, Japanese, Thai, ...) is a word of its own. A long document is known by
the hashes of its runs of `RUN_WORDS` words, of a long one by an eighth of them, chosen by their values. What two
documents share is found by looking hashes up: time and memory grow with lengths, not with the number of pairs.

Suffixes: `_C` characters, `_W` words, `_R` runs of words.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from curriculum.layout import DemonstrationItem, QuestionItem, split_prompt
from curriculum.rejects import RowError

RUN_WORDS = 16
"""Words of a run: long enough to be no phrase, short enough that a changed word costs little."""
MIN_SHARED_WORDS = 100
"""A shared text that is shorter proves nothing, unless it is half of the shorter document."""
MIN_SHARED_SHARE = 0.2
"""Share of the shorter document from which a shared text counts: what filings have in common reaches 0.07
(`benchmarks.leaks`)."""

_KEPT_OF = 8
_ALL_KEPT = 4096
"""A document of at most this many runs keeps all of them, and what is shared with it is counted, not estimated."""
_WORD_CHARS = 64
"""Characters of a word that have a factor of their own."""
_GAP, _LETTER, _WHOLE_WORD = 0, 1, 2
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Thai, Lao, Myanmar, Khmer, Kana and Han."""
_NO_HASHES = np.zeros(0, np.uint64)


class Overlap(StrEnum):
    """What a question has in common with a set, the strongest first."""

    QUESTION_AND_DOCUMENT = "same question and document"
    """Or the same question where it has no document. A document that shares a long passage counts as the same."""
    DOCUMENT = "same document"
    PASSAGE = "long shared passage"
    QUESTION = "same question, another document"
    """No leak: the answer is in the document."""

    @property
    def is_leak(self) -> bool:
        """Whether the question tells nothing about a model that was trained on the set."""
        return self is not Overlap.QUESTION


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traces:
    """What is kept of a question about a document."""

    question: str
    """Digest of its words; "" where it has none."""
    document: str
    """Digest of its words; "" where there is no document."""
    runs_R: NDArray[np.uint64]
    """[R] hashes of the distinct runs of words of the document, sorted; one of all words where it is shorter. Of the
    question where there is no document: a prompt that is kept as it is may hold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A question that has something in common with a set."""

    overlap: Overlap
    item_id: str
    """The item of the set, or one of several."""


def traces_of(context: str, question: str) -> Traces:
    """Return the traces of a question about a document; either may be empty."""
    context_W, question_W = _words(context), _words(question)
    runs_R = _runs(context_W if len(context_W) else question_W)
    return Traces(question=_digest(question_W), document=_digest(context_W), runs_R=runs_R)


def traces_of_item(item: QuestionItem | DemonstrationItem) -> Traces:
    """Return the traces of an item; a prompt whose document is not known is a question without one."""
    if item.context or not item.messages:
        return traces_of(item.context or "", item.question or "")
    for message in reversed(item.messages):
        try:
            return traces_of(*split_prompt(message["content"]))
        except RowError:
            continue  # it is not the prompt of the paper
    return traces_of("", item.question or "\n".join(message["content"] for message in item.messages))


class KnownQuestions:
    """The questions and documents of a set; documents that are equal are kept once."""

    def __init__(self) -> None:
        self._questions: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], str] = {}
        self._documents: dict[str, int] = {}
        self._item_ids: list[str] = []
        self._num_runs: list[int] = []
        self._kept: list[NDArray[np.uint64]] = []
        self._index: _RunIndex | None = None

    def add(self, traces: Traces, item_id: str) -> None:
        """Take a question into the set."""
        if traces.question:
            self._questions.setdefault(traces.question, item_id)
            self._pairs.setdefault((traces.question, traces.document), item_id)
        document = traces.document or traces.question
        if not document or document in self._documents:
            return
        self._documents[document] = len(self._item_ids)
        self._item_ids.append(item_id)
        self._num_runs.append(len(traces.runs_R))
        self._kept.append(_kept(traces.runs_R))
        self._index = None

    def match(self, traces: Traces) -> Match | None:
        """Return what a question has in common with the set, the strongest; None for nothing."""
        asked = self._questions.get(traces.question)
        if not traces.document:
            return None if asked is None else Match(overlap=Overlap.QUESTION_AND_DOCUMENT, item_id=asked)
        if (item_id := self._pairs.get((traces.question, traces.document))) is not None:
            return Match(overlap=Overlap.QUESTION_AND_DOCUMENT, item_id=item_id)
        if (same := self._documents.get(traces.document)) is not None:
            return Match(overlap=Overlap.DOCUMENT, item_id=self._item_ids[same])
        if (near := self._sharing(traces)) is not None:
            overlap = Overlap.PASSAGE if asked is None else Overlap.QUESTION_AND_DOCUMENT
            return Match(overlap=overlap, item_id=self._item_ids[near])
        return None if asked is None else Match(overlap=Overlap.QUESTION, item_id=asked)

    def _sharing(self, traces: Traces) -> int | None:
        """Return the document that shares most with another one; None where no document shares enough."""
        if self._index is None:
            self._index = _RunIndex(self._kept, self._num_runs)
        return self._index.sharing(traces.runs_R)


class _RunIndex:
    """The runs of many documents, by their hashes."""

    def __init__(self, kept: list[NDArray[np.uint64]], num_runs: list[int]) -> None:
        """Take the kept runs of every document, and how many it has."""
        self._num_runs = np.asarray(num_runs, np.int64)
        hashes = np.concatenate(kept) if kept else _NO_HASHES
        documents = np.repeat(np.arange(len(kept), dtype=np.uint32), [len(runs) for runs in kept])
        order = np.argsort(hashes)
        self._hashes, self._documents = hashes[order], documents[order]
        self._weights = np.where(self._num_runs > _ALL_KEPT, _KEPT_OF, 1)

    def sharing(self, runs_R: NDArray[np.uint64]) -> int | None:
        """Return the document that shares the largest part; None where no document shares enough."""
        first = np.searchsorted(self._hashes, runs_R, side="left")
        counts = np.searchsorted(self._hashes, runs_R, side="right") - first
        found = np.flatnonzero(counts)
        if not len(found):
            return None
        begin, size = first[found], counts[found]
        places: NDArray[np.int64] = np.repeat(begin - np.cumsum(size) + size, size) + np.arange(int(size.sum()))
        documents, num_shared = np.unique(self._documents[places], return_counts=True)
        shorter = np.minimum(self._num_runs[documents], len(runs_R)) + RUN_WORDS - 1
        shared = np.minimum(num_shared * self._weights[documents] + RUN_WORDS - 1, shorter)
        share = shared / shorter
        enough = (share >= MIN_SHARED_SHARE) & (shared >= np.minimum(MIN_SHARED_WORDS, shorter / 2))
        return int(documents[np.argmax(np.where(enough, share, 0.0))]) if enough.any() else None


# ---- words and their hashes


def _words(text: str) -> NDArray[np.uint64]:
    """Return the [W] hashes of the words of a text."""
    if text.isascii():
        codes_C = np.frombuffer(text.lower().encode("ascii"), np.uint8)
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        codes_C = np.frombuffer(folded.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    kinds_C = _kinds()[codes_C]
    before_C = np.concatenate([np.zeros(1, np.uint8), kinds_C[:-1]])
    is_start_C = (kinds_C == _WHOLE_WORD) | ((kinds_C == _LETTER) & (before_C != _LETTER))
    starts = np.flatnonzero(is_start_C)
    if not len(starts):
        return _NO_HASHES
    is_letter_C = kinds_C != _GAP
    letters = np.flatnonzero(is_letter_C)
    word_of_letter = np.cumsum(is_start_C)[letters] - 1
    place_in_word = (letters - starts[word_of_letter]) % _WORD_CHARS
    terms = (codes_C[letters].astype(np.uint64) + np.uint64(1)) * _factors(_WORD_CHARS)[place_in_word]
    first_letter = np.searchsorted(letters, starts)
    return _mixed(np.add.reduceat(terms, first_letter))


def _runs(words_W: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the sorted distinct hashes of all runs of words."""
    if not len(words_W):
        return _NO_HASHES
    length = min(RUN_WORDS, len(words_W))
    num_runs = len(words_W) - length + 1
    sums_R = np.zeros(num_runs, np.uint64)
    for offset, factor in enumerate(_factors(length)):
        sums_R += words_W[offset : offset + num_runs] * factor
    return np.unique(_mixed(sums_R))


def _kept(runs_R: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the runs that stand for a document: all of a short one, else those whose hash is a multiple of eight."""
    return runs_R if len(runs_R) <= _ALL_KEPT else runs_R[runs_R % np.uint64(_KEPT_OF) == 0]


def _digest(words_W: NDArray[np.uint64]) -> str:
    return xxhash.xxh3_128_hexdigest(words_W.tobytes()) if len(words_W) else ""


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all others (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _factors(count: int) -> NDArray[np.uint64]:
    """Return odd numbers, one for each place of a sum, so that the order of its terms matters."""
    return _mixed(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Return what each code point is: a gap, a letter or digit, or a word of its own."""
    is_letter = np.fromiter((chr(code).isalnum() for code in range(0x110000)), np.bool_, 0x110000)
    kinds = np.where(is_letter, _LETTER, _GAP).astype(np.uint8)
    for first, last in _WITHOUT_SPACES:
        kinds[first : last + 1][is_letter[first : last + 1]] = _WHOLE_WORD
    return kinds
