"""Checks of a verified answer before it becomes a demonstration: format, script, repetition, grounding, duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from evaluation.grounding import Passage, grounding_precision
from reward.answer import extract_answer
from reward.thinking import thinking_of

NGRAM_WORDS = 8
"""Length of the word runs whose repetition is measured."""
MAX_EQUAL_LINES = 8
"""A line of some length that comes more often than this is a loop."""
MIN_LINE_CHARS = 12
MIN_GROUNDED_PASSAGES = 3
"""Fewer passages say nothing about how faithfully a response quotes."""
NEAR_DUPLICATE = 0.8
"""Jaccard similarity of word runs from which two responses to one question count as the same."""

_WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]+")
_CONTROL = re.compile(r"<\|[^|<>\n]{1,60}\|>|<｜[^｜\n]{1,60}｜>")


class RejectedAs(StrEnum):
    """Why an answer did not become a demonstration, in the order of the checks."""

    FAILED = "failed"
    """The teacher gave no answer."""
    TRUNCATED = "truncated"
    """It ran into the limit of output tokens."""
    UNKNOWN = "unknown"
    """Neither rule nor judge could decide."""
    WRONG = "wrong"
    """It is not the accepted answer."""
    NO_FORMAT = "no_format"
    """No closed thinking, no final answer behind it, or control tokens in the text."""
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    """Prompt and response exceed the limit together."""
    MIXED_LANGUAGE = "mixed_language"
    """Too many letters of a script that neither document nor question uses."""
    REPETITIVE = "repetitive"
    UNGROUNDED = "ungrounded"
    """Too much of what it quotes or paraphrases is not in the document."""
    DUPLICATE = "duplicate"
    """Nearly the same response to the same question was kept."""
    SURPLUS = "surplus"
    """Enough demonstrations of the question were kept."""


def has_format(response: str) -> bool:
    """Return whether a response is one closed thought that is not empty, followed by a final answer."""
    if response.count("</think>") != 1 or response.count("<think>") > 1 or _CONTROL.search(response):
        return False
    if "<think>" in response and not response.lstrip().startswith("<think>"):
        return False
    return bool(thinking_of(response).strip()) and extract_answer(response) is not None


def foreign_share(response: str, source: str) -> float:
    """Return the share of the response's letters that belong to a script which the source (almost) never uses.

    A script counts as used from one letter in a thousand on, so a single foreign name does not admit its script.
    """
    used = _scripts(source)
    num_letters = sum(used.values())
    accepted = {script for script, count in used.items() if count * 1000 >= num_letters}
    counts = _scripts(response)
    total = sum(counts.values())
    return sum(count for script, count in counts.items() if script not in accepted) / total if total else 0.0


def repetition(response: str) -> float:
    """Return the share of the runs of `NGRAM_WORDS` words that repeat an earlier run; 1.0 for a line that loops."""
    lines = Counter(line for line in map(str.strip, response.splitlines()) if len(line) >= MIN_LINE_CHARS)
    if lines and max(lines.values()) > MAX_EQUAL_LINES:
        return 1.0
    runs = _runs(response, NGRAM_WORDS)
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def is_ungrounded(passages: Sequence[Passage], *, min_precision: float) -> bool:
    """Return whether a response quotes enough passages to tell, and too few of them are in the document."""
    precision = grounding_precision(passages)
    return len(passages) >= MIN_GROUNDED_PASSAGES and precision is not None and precision < min_precision


def is_near_duplicate(response: str, others: Sequence[str]) -> bool:
    """Return whether one of the others has nearly the same runs of three words."""
    mine = set(_runs(response, 3))
    for other in others:
        theirs = set(_runs(other, 3))
        union = len(mine | theirs)
        if response.split() == other.split() or (union and len(mine & theirs) / union >= NEAR_DUPLICATE):
            return True
    return False


def _runs(text: str, num_words: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return list(zip(*(words[offset:] for offset in range(num_words)), strict=False))


def _scripts(text: str) -> Counter[str]:
    """Count letters by script; each different letter is looked up once."""
    counts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            counts[_script(letter)] += count
    return counts


def _script(letter: str) -> str:
    """Return the first word of the letter's Unicode name; Japanese kana and Han are different scripts."""
    name = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return {"FULLWIDTH": "LATIN", "MICRO": "GREEK", "OHM": "GREEK", "MATHEMATICAL": "LATIN"}.get(name, name)
