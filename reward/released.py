"""The rules of the released code, score for score, for comparison with published numbers; model text is never run.

The reference (docqa.py, docmath.py and long.py of the released repository) reads an answer only behind `</think>`,
accepts substrings in both directions, ignores signs and many scales, and evaluates what it takes for a number.
This module makes the same decisions without evaluation and in linear time. Where the reference raises, the score is 0.
"""

from __future__ import annotations

import math
import re
import string

from reward.kind import AnswerKind

_SENTENCES = {
    AnswerKind.TEXT: "Therefore, the answer is {}",
    AnswerKind.NUMERIC: "Therefore, the answer is {}",
    AnswerKind.CHOICE: "The correct answer is {}",
}
_END_TOKENS = ("<｜Assistant｜>", "<｜end▁of▁sentence｜>")
_NUMBER = re.compile(r"the answer is (=?≈?`?%?\$?°?£?€?¥?-?[0-9.,]+)", re.IGNORECASE)
_CHOICES = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LEADING_POINTS = re.compile(r"\.{1,2}(\d++|\d*+\.++\d++)")
_INTEGER = re.compile(r"-?(0++|[1-9]\d*+)")
_FLOAT = re.compile(r"-?(\d++\.\d*+|\.\d++)")
_MAX_INTEGER_DIGITS = 4300
"""Python refuses to read longer integers, and the reference then falls back to 0."""
_TOLERANCE = 0.0015


def released_answer(kind: AnswerKind, response: str) -> str | None:
    """Return the answer that the released code reads in a response; None where it reads none."""
    _, closed, text = response.rpartition("</think>")
    return _READERS[kind](text.strip()) or None if closed else None


def released_match(kind: AnswerKind, answer: str, ground_truth: str) -> bool:
    """Return whether the rule of the released code accepts an answer; a bare truth is put into its sentence first."""
    return _ACCEPTS[kind](answer, released_truth(kind, ground_truth))


def released_truth(kind: AnswerKind, ground_truth: str) -> str | None:
    """Return the truth as the released code reads it; None where it would fail on it."""
    read = _READERS[kind]
    return read(ground_truth) or read(_SENTENCES[kind].format(ground_truth.strip()))


def _read_text(text: str) -> str | None:
    _, found, answer = text.replace("*", "").rpartition("the answer is")
    if not found:
        return None
    answer = answer.strip()
    for token in _END_TOKENS:
        answer = answer.replace(token, "")
    return answer.strip().strip(".").strip()


def _read_number(text: str) -> str | None:
    found = _NUMBER.search(text.replace("*", ""))
    return found[1].replace(",", "").rstrip(".") if found else None


def _read_choice(text: str) -> str | None:
    text = text.replace("*", "")
    found = next((match for pattern in _CHOICES if (match := pattern.search(text))), None)
    return found[1] if found else None


def _text_accepted(answer: str, truth: str | None) -> bool:
    if truth is None:
        return False
    ours, theirs = _normal_text(answer), _normal_text(truth)
    return theirs in ours or ours in theirs


def _normal_text(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _number_accepted(answer: str, truth: str | None) -> bool:
    if truth is None:
        return False
    try:
        return _same_number(_released_value(answer), _released_value(truth))
    except (OverflowError, ValueError):
        return False


def _released_value(text: str) -> int | float:
    """Return the number that the reference's evaluation yields for what its pattern captures; 0 where that fails."""
    text = text.strip().rstrip(".").translate(str.maketrans("", "", "£€¥`%$°"))
    text = re.split(r"[=≈]", text)[-1].strip()
    points = _LEADING_POINTS.fullmatch(text)
    text = points[1] if points else text
    if _INTEGER.fullmatch(text):
        return int(text) if len(text.lstrip("-")) <= _MAX_INTEGER_DIGITS else 0
    return float(text) if _FLOAT.fullmatch(text) else 0


def _same_number(answer: int | float, truth: int | float) -> bool:
    larger, smaller = max(abs(truth), abs(answer)), min(abs(truth), abs(answer))
    if larger and smaller:
        decades = math.log10(larger) - math.log10(smaller)
        if int(decades) == decades:
            return True
    for threshold, scale in ((50, 100), (500, 1000), (50_000, 100_000)):
        if smaller <= larger / threshold and _within(smaller * scale, larger):
            return True
    if math.ceil(larger * 1000) / 1000 == math.ceil(smaller * 1000) / 1000:
        return True
    return _within(answer, truth)


def _within(value: int | float, truth: int | float) -> bool:
    allowed = abs(truth) * _TOLERANCE
    return truth - allowed <= value <= truth + allowed


def _choice_accepted(answer: str, truth: str | None) -> bool:
    return answer == truth


_READERS = {AnswerKind.TEXT: _read_text, AnswerKind.NUMERIC: _read_number, AnswerKind.CHOICE: _read_choice}
_ACCEPTS = {AnswerKind.TEXT: _text_accepted, AnswerKind.NUMERIC: _number_accepted, AnswerKind.CHOICE: _choice_accepted}
