"""From a response to the answer that it gives: behind the thinking, announced, without what only wraps it.

Which announcement counts: the last box, else the last "Therefore, the answer is", else the last other one.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

from curriculum.cells import texts_in_json
from reward.judge_prompt import imitates_judge_format
from reward.thinking import text_after_thinking
from reward.wrapping import MAX_ANSWER_CHARS, clean_answer, without_wrappers_of_sentence

_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")
_ANSWER = re.compile(
    r"<(?:final_)?answer>|(?<![^\W_])answers?(?![^\W_])|答案|(?<=[题应故])选(?=[A-Za-z(（【*])", re.IGNORECASE
)
_BEFORE = re.compile(
    r"(?P<sentence>(?:(?P<therefore>\btherefore\b|因此|所以|综上所述|综上)[\s,，:*_]*)?"
    r"(?P<article>\bthe[\s*_]+)?(?:(?:correct|final|right|best|正确|最终|本)[\s*_]*){0,2})\Z",
    re.IGNORECASE,
)
_VERB = r"(?:is|are|was|were|(?:would|should|will|must|has\s+to|ought\s+to)\s+(?:then\s+)?be)(?![a-z'’])"
_AFTER = re.compile(
    rf"(?:[\s*_]+(?:to|for)\s+(?:the|this|that|your|my|our)\b[^.?!:\n]{{0,80}}?)?[\s*_]+(?P<verb>{_VERB})[*_]*(?:\s*[:：][*_]*)?"
    r"|(?:[\s*_]+1)?[*_]*\s?(?P<colon>[:：])[*_]*",
    re.IGNORECASE,
)
_CHINESE_AFTER = re.compile(r"[\s*_]*(?:应该|应当|应|就)?(?:是|为|[:：])[\s*_:：]*")
_HEADING = re.compile(r"[*_]*[ \t]*(?=\n)")
_START_OF_LINE = re.compile(r"(?:\A|\n)[^\w\n]*(?:the[ *_]+)?(?:(?:correct|final|right|best)[ *_]+)?\Z", re.IGNORECASE)

_TAIL = (
    r"(?=\s+(?:in|on|by|from|to|as|at|with|within|above|below|here|using|directly|against|that|because)\b"
    r"|\s*[.!,;)]|\s*\Z)"
)
_PROSE = re.compile(
    r"[\s*_]*(?:(?:also|clearly|directly|explicitly|correctly|therefore|thus|simply|indeed|only|fully|well|not|already"
    r"|then)\s+)*(?:"
    rf"(?:[a-z]{{3,}}ed|given|found|shown|drawn|taken|written|known|seen|correct|right|wrong|clear|consistent|exact"
    rf"|final|complete|certain|unique|verbatim|case[ -](?:in)?sensitive){_TAIL}"
    r"|(?:in|on|from|within|at)\s+(?:the|this|section|paragraph|passage|page|document|line|table|chapter|article)\b"
    r"|(?:the\s+same|an?\s+(?:direct|exact|verbatim|literal|quot\w+|rounded|approximat\w+|estimate|paraphrase|summary))\b)"
)
"""What is said about an answer, in lower case: "correct", "rounded to two decimals", "given in paragraph 3"."""

_FENCE = re.compile(r"\s*```\w*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BULLET = re.compile(r"[ \t]*(?:[-*•·‣▪►➤→–—]|\d{1,2}[.)])[ \t]+(?=\S)")
_EMPHASISED = re.compile(
    r"\s*(\*\*|__)(?P<value>[^*_\n]{1,300})\1[\s,.;:]*(?:\Z|(?:because|since|as|for|which)\b)", re.IGNORECASE
)
_BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n")
_CONTINUES = re.compile(r"(?:,|;|:|\band|\bor|\bbut)\s*\Z")
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)*_\]]*\s+|\n\s*")
_MAX_WORDS = 512
"""Words that may announce an answer; the last ones of a response that has more."""
_MAX_TRIES = 4
"""Announcements that are looked at, best first: those that announce nothing are rare."""

_TRUTH_SENTENCE = re.compile(
    r"\s*(?:(?:therefore|thus|so|hence)\s*,?\s+)?the\s+(?:correct\s+|final\s+|right\s+)?answer\s+is(?![a-z'’])\s*[:：]?"
    r"|\s*(?:因此|所以)?[,，]?\s*(?:正确|最终)?答案(?:应该|应当|应)?(?:是|为|[:：])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A place where a response announces an answer."""

    start: int
    """Where its sentence begins."""
    end: int
    """Where the answer begins."""
    therefore: bool
    """Whether it is the sentence that the prompt asks for, "Therefore, the answer is"."""


def extract_answer(
    response: str, *, thinking_required: bool = False, tags: tuple[str, str] | None = None
) -> str | None:
    r"""Return the answer that a response gives, folded and without what only wraps it; None where it gives none.

    Only the text behind the thinking is read (`thinking.py`). The last `\boxed{}` is the answer; without a box it is
    what the last "Therefore, the answer is" announces, else what the last other announcement does ("the answer is",
    "the answer would be", "the answers are", "Final answer:", 答案是). What is only said about an answer ("the answer
    is supported by paragraph 3") announces none where another one does. An answer ends with its line.

    Args:
        response: the whole response.
        thinking_required: a response that never ends a thought gives no answer.
        tags: a pair of thinking tags beside the known ones.
    """
    text = text_after_thinking(response, required=thinking_required, tags=tags)
    if text is None:
        return None
    boxed = last_boxed(text)
    if boxed is not None and (answer := clean_answer(boxed)):
        return answer
    return _announced_answer(text)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` or `\fbox{…}` with balanced braces; None where there is none."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    begin, depth = boxes[-1].end(), 1
    for brace in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


def accepted_answers(ground_truth: object) -> tuple[str, ...]:
    """Return the accepted answers of a record: a bare answer, a list, or sentences "Therefore, the answer is X".

    Raises:
        ValueError: where the ground truth holds no answer, or something that is not one.
    """
    if isinstance(ground_truth, str | Real):
        ground_truth = texts_in_json(ground_truth) or (ground_truth,)
    if not isinstance(ground_truth, Iterable) or isinstance(ground_truth, bytes | dict):
        raise ValueError(f"ground_truth={ground_truth!r:.80} is no answer; give a string or a list of strings")
    answers = tuple(dict.fromkeys(_bare_truth(item) for item in cast("Iterable[object]", ground_truth)))
    if not answers or not all(answers):
        raise ValueError("ground_truth holds an empty answer or none; give at least one non-empty string")
    return answers


def _bare_truth(item: object) -> str:
    if not isinstance(item, str | Real) or (isinstance(item, float) and math.isnan(item)):
        raise ValueError(f"ground_truth holds {item!r:.80}, which is no answer; give strings")
    text = str(int(item)) if isinstance(item, float) and item.is_integer() else str(item)
    sentence = _TRUTH_SENTENCE.match(text)
    text = text[sentence.end() :] if sentence else text
    return clean_answer(text) if sentence else text.strip()


def _announced_answer(text: str) -> str | None:
    """Return what the announcement that counts announces; the next best one where it announces nothing."""
    found = list(_announcements(text))
    told = [item for item in found if not _PROSE.match(text, item.end)] or found
    ranked = sorted(told, key=lambda item: (item.therefore, item.end), reverse=True)
    for announcement in ranked[:_MAX_TRIES]:
        following = next((item.start for item in found if item.start >= announcement.end), len(text))
        if answer := _answer_in(text, announcement, following):
            return answer
    return None


def _announcements(text: str) -> Iterator[Announcement]:
    """Find the announcements, in order; linear in the text."""
    for word in deque(_ANSWER.finditer(text), maxlen=_MAX_WORDS):
        if announcement := _announcement(text, word):
            yield announcement


def _announcement(text: str, noun: re.Match[str]) -> Announcement | None:
    if noun[0].startswith("<"):
        return Announcement(noun.start(), noun.end(), therefore=False)
    before = _BEFORE.search(text[max(0, noun.start() - 60) : noun.start()])
    assert before is not None, "the pattern matches the empty text"
    start, therefore = noun.start() - len(before["sentence"]), before["therefore"] is not None
    if noun[0] == "答案":
        after = _CHINESE_AFTER.match(text, noun.end())
        return Announcement(start, after.end(), therefore) if after else None
    if noun[0] == "选":
        return Announcement(start, noun.end(), therefore)
    at_line = _START_OF_LINE.search(text[max(0, noun.start() - 60) : noun.start()]) is not None
    after = _AFTER.match(text, noun.end())
    if after and (before["article"] if after["verb"] else at_line or before["sentence"]):
        return Announcement(start, after.end(), therefore and after["verb"] is not None)
    heading = _HEADING.match(text, noun.end())
    return Announcement(start, heading.end(), therefore=False) if heading and at_line else None


def _answer_in(text: str, announcement: Announcement, following: int) -> str | None:
    """Return the answer between an announcement and the sentence of the next one.

    It is one line, but a paragraph that imitates the judge's format counts as a whole, so that it is seen as an attack.
    """
    paragraph = _first_paragraph(text[announcement.end :][: 2 * MAX_ANSWER_CHARS])
    if imitates_judge_format(paragraph):
        return clean_answer(paragraph) or None
    passage = text[announcement.end : following]
    if following < len(text):
        passage = _without_last_sentence(passage)
    value = _first_line(passage)
    emphasised = _EMPHASISED.match(value)
    value = emphasised["value"] if emphasised else value
    return clean_answer(without_wrappers_of_sentence(value, text[: announcement.start])) or None


def _first_paragraph(passage: str) -> str:
    blank = _BLANK_LINE.search(passage.lstrip())
    return passage.lstrip()[: blank.start()] if blank else passage


def _without_last_sentence(passage: str) -> str:
    """Cut the beginning of a sentence that the next announcement goes on with ("Note that the answer …")."""
    ends = list(_SENTENCE_END.finditer(passage))
    return passage[: ends[-1].start() + 1] if ends else passage


def _first_line(passage: str) -> str:
    """Return the line of the answer; of a block of code or of a list that begins below the announcement, all of it."""
    if fenced := _FENCE.match(passage):
        return fenced[1].strip()
    first, _, rest = passage.partition("\n")
    if first.strip(" \t*_:：\"'“”`"):
        return f"{first} {rest.lstrip().partition(chr(10))[0]}" if _CONTINUES.search(first) else first
    lines = rest.lstrip().split("\n")
    if not _BULLET.match(lines[0]):
        return lines[0]
    return ", ".join(_bulleted(lines))


def _bulleted(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        bullet = _BULLET.match(line)
        if bullet is None:
            return
        yield line[bullet.end() :].strip()
