"""What only wraps an answer: quotes, brackets, tags, citations, bullets, emoji, end-of-turn tokens, mark-up."""

from __future__ import annotations

import re
from typing import Final

from reward.folding import fold
from reward.judge_prompt import imitates_judge_format

MAX_ANSWER_CHARS: Final = 10_000
"""Longer answers are cut here: no accepted answer is this long, and every later step stays cheap."""

_PLACEHOLDER = re.compile(r"\W*insert (?:your |the )?answer here\W*", re.IGNORECASE)
_END_OF_TURN = re.compile(
    r"\s*(?:<[|｜][^|｜<>]{1,60}[|｜]>|</?s>|<eos>|<(?:end|start)_of_turn>|\[/?INST\])\s*\Z", re.IGNORECASE
)
_EMPHASIS = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)|~~|\$\$")
_LABEL = re.compile(r"answer 1 ?: ?(?=\S)", re.IGNORECASE)
_BULLET = re.compile(r"\s*(?:[-*•·‣▪►➤→>#–—―]+\s+)+(?=\S)")
_DASH = re.compile(r"\s*[–—―](?=[\d.(]|[$€£¥]\s?\d)")
_CITATIONS = re.compile(r"(?<=\S)\s*(?:\^?\[\^?\d{1,3}(?:\s*[,;-]\s*\d{1,3})*\]|【[^】\n]{1,40}】)+\Z")
_TAGS_AT_START = re.compile(
    r"\A(?:\s*</?(?:final_)?(?:answer|[bi]|em|strong|p|span|div|code|mark|u)\b[^<>]{0,80}>)+(?=.*\S)", re.I
)
_TAGS_AT_END = re.compile(
    r"(?<=\S)\s*(?:</?(?:final_)?(?:answer|[bi]|em|strong|p|span|div|code|mark|u|br)\b[^<>]{0,80}>\s*)+\Z", re.I
)
_EMOJI = "\u2600-\u266c\u2670-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u200d"
_EMOJI_AT_END = re.compile(rf"(?<=[^\s{_EMOJI}])\s*[{_EMOJI}\s]*[{_EMOJI}]\Z")
_EMOJI_AT_START = re.compile(rf"\A[{_EMOJI}][{_EMOJI}\s]*(?=[^\s{_EMOJI}])")
_PAIRS: Final = (("(", ")"), ("[", "]"), ("{", "}"), ("【", "】"), ("<", ">"))
_QUOTES: Final = (('"', '"'), ("'", "'"), ("`", "`"), ("*", "*"), ("_", "_"), ("$", "$"))
_MAX_LAYERS: Final = 8
"""Wrappers around wrappers that are taken off."""
_MAX_TAIL_CHARS: Final = 200
"""Citations and tags at the end of an answer are looked for in so many characters."""
_CLOSERS: Final = {")": "(", "]": "[", "}": "{"}
_OPENERS: Final = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'", "`": "`", "<": ">"}


def clean_answer(text: str) -> str:
    """Return a short text folded, without special tokens, mark-up, bullets, citations, quotes and the final full stop.

    Brackets around the whole stay: for texts they may mean something (`bare_value` takes them off). A dash that is set
    like a bullet is none of the value; an en or em dash glued to a number is kept apart from it ("- 5"), because it
    may or may not be a minus.
    """
    text = text.strip()[:MAX_ANSWER_CHARS].strip()
    while token := _END_OF_TURN.search(text, max(0, len(text) - 80)):
        text = text[: token.start()].rstrip()
    text = _EMPHASIS.sub("", text)
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    text = fold(_DASH.sub("- ", text, count=1) if _DASH.match(text) else text)
    text = _LABEL.sub("", " ".join(text.split()), count=1) if _LABEL.match(text.lstrip()) else " ".join(text.split())
    if imitates_judge_format(text):
        return text  # an attack stays as it is, so that it is seen
    for _ in range(_MAX_LAYERS):
        text = _strip_once(text)
    return "" if _PLACEHOLDER.fullmatch(text) else text


def bare_value(text: str) -> str:
    """Return a clean answer without the brackets around the whole of it."""
    for _ in range(_MAX_LAYERS):
        text = _strip_once(_unwrap(text, _PAIRS))
    return text


def without_wrappers_of_sentence(value: str, before: str) -> str:
    """Cut what closes a quotation, a bracket or a tag that was opened right before the sentence of the answer.

    Args:
        value: the answer and what follows it in its line.
        before: the text before the sentence.
    """
    opened = re.search(r"[\"'“”‘’«»„`(\[{<*_\s]*\Z", before[-20:])
    wrappers = fold(opened[0]) if opened else ""
    value = value.rstrip()
    for opening in wrappers:
        closing = _OPENERS.get(opening)
        tail = fold(value[-1:])
        if closing and tail in (closing, ".", "。", "*") and value.rstrip(".。*").endswith(_spellings(closing)):
            value = value.rstrip(".。*")[:-1].rstrip()
    return value


def _spellings(closing: str) -> tuple[str, ...]:
    return {'"': ('"', "”", "“", "»", "«"), "'": ("'", "’", "‘")}.get(closing, (closing,))


def _strip_once(text: str) -> str:
    text = text.strip().rstrip("。").rstrip(".").rstrip()
    text = _EMOJI_AT_START.sub("", _TAGS_AT_START.sub("", text, count=1) if text.startswith("<") else text)
    head, tail = text[:-_MAX_TAIL_CHARS], text[-_MAX_TAIL_CHARS:]
    text = head + _CITATIONS.sub("", _EMOJI_AT_END.sub("", _TAGS_AT_END.sub("", tail)))
    return _without_unbalanced(_unwrap(text.strip(), _QUOTES)).strip("*`").strip()


def _unwrap(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for opening, closing in pairs:
        inner = text[1:-1]
        if (
            len(text) > 1
            and text.startswith(opening)
            and text.endswith(closing)
            and _is_balanced(inner, opening, closing)
        ):
            return inner.strip()
    return text


def _is_balanced(inner: str, opening: str, closing: str) -> bool:
    """Whether the two ends belong together: "(a) or (b)" is not wrapped."""
    if opening == closing:
        return opening not in inner
    depth = 0
    for char in inner:
        depth += (char == opening) - (char == closing)
        if depth < 0:
            return False
    return depth == 0


def _without_unbalanced(text: str) -> str:
    """Cut a bracket at an end of the text that has no partner; a half-open interval keeps its brackets."""
    if text[-1:] in _CLOSERS and _depth(text[:-1]) < 1 and not _has_partner(text[::-1]):
        return text[:-1].rstrip()
    if text[:1] in _CLOSERS.values() and _depth(text[1:]) > -1 and not _has_partner(text):
        return text[1:].lstrip()
    return text


def _has_partner(text: str) -> bool:
    """Whether the first bracket of the text is closed by one of its kind."""
    partner = {**_CLOSERS, **{opening: closing for closing, opening in _CLOSERS.items()}}[text[0]]
    depth = 0
    for char in text:
        depth += (char == text[0]) - (char == partner)
        if depth == 0:
            return True
    return False


def _depth(text: str) -> int:
    """Return the number of opened less that of closed brackets, of any kind."""
    return sum(text.count(opening) - text.count(closing) for closing, opening in _CLOSERS.items())
