"""The answer that a response gives: behind the thinking and the last "the answer is", without mark-up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Real
from typing import cast

from reward.folding import fold

MAX_ANSWER_CHARS = 10_000
"""Longer answers are cut here: no accepted answer is this long, and every later step stays cheap."""

_LAST_WORDS = re.compile(r"\bthe[\s*_]+(?:(?:correct|final|right)[\s*_]+)?\Z")
_NEXT_WORDS = re.compile(r"[\s*_]+is(?![a-z'’])[\s*_:：]*")
_CHINESE_VERB = re.compile(r"[\s*_]*(?:应该|应当|应|就)?(?:是|为|[:：])[\s*_:：]*")
_PLACEHOLDER = re.compile(r"\(?\s*insert (?:your )?answer here\s*\)?", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,60}\|>\s*\Z|</?s>\s*\Z|<eos>\s*\Z", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)|~~|\$\$")
_TRUTH_SENTENCE = re.compile(
    r"\s*(?:(?:therefore|thus|so|hence)\s*,?\s+)?the\s+(?:correct\s+|final\s+|right\s+)?answer\s+is(?![a-z'’])\s*[:：]?"
    r"|\s*(?:因此|所以)?[,，]?\s*(?:正确|最终)?答案(?:应该|应当|应)?(?:是|为|[:：])",
    re.IGNORECASE,
)
_WRAPPERS = (('"', '"'), ("'", "'"), ("`", "`"), ("*", "*"), ("_", "_"), ("$", "$"))


def extract_answer(response: str, *, thinking_required: bool = False) -> str | None:
    r"""Return the answer that a response gives, folded and stripped; None where it gives none.

    It is what follows the last "the answer is" (any case; also "the correct answer is", 答案是) up to a blank line,
    or the last `\boxed{}` of that passage; without such a sentence it is the last `\boxed{}`. Only the text behind
    the last `</think>` is read. An unclosed thought gives no answer, and neither does, where `thinking_required`, a
    response without `</think>`.
    """
    text = text_after_thinking(response, thinking_required=thinking_required)
    if text is None:
        return None
    start = _end_of_last_announcement(text)
    if start is None:
        boxed = last_boxed(text)
        return clean_answer(boxed) or None if boxed is not None else None
    passage = text[start:]
    boxed = last_boxed(passage)
    return clean_answer(boxed if boxed is not None else _first_paragraph(passage)) or None


def text_after_thinking(response: str, *, thinking_required: bool = False) -> str | None:
    """Return the text of a response after its thinking; None where the thinking never ends."""
    _, closed, text = response.rpartition("</think>")
    if not closed and thinking_required:
        return None
    visible, opened, _ = text.partition("<think>")
    return None if opened and not closed else visible


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` with balanced braces; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for brace in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


def clean_answer(text: str) -> str:
    """Fold a short text; remove special tokens, markdown, enclosing quotes and the final full stop."""
    text = fold(text[:MAX_ANSWER_CHARS]).strip()
    while token := _SPECIAL_TOKEN.search(text, max(0, len(text) - 80)):
        text = text[: token.start()].rstrip()
    text = _EMPHASIS.sub("", text)
    text = " ".join(text.split()).lstrip("#").strip()
    while (stripped := _unwrap(text.rstrip("。").rstrip(".").strip())) != text:
        text = stripped
    return "" if _PLACEHOLDER.fullmatch(text) else text


def accepted_answers(ground_truth: object) -> tuple[str, ...]:
    """Return the accepted answers of a record.

    The ground truth is one answer or several, each bare or a sentence "Therefore, the answer is X".

    Raises:
        ValueError: where the ground truth holds no answer, or something that is not one.
    """
    if isinstance(ground_truth, str | Real):
        ground_truth = (ground_truth,)
    if not isinstance(ground_truth, Iterable) or isinstance(ground_truth, bytes | dict):
        raise ValueError(f"ground_truth={ground_truth!r:.80} is no answer; give a string or a list of strings")
    answers = tuple(dict.fromkeys(_bare_truth(item) for item in cast("Iterable[object]", ground_truth)))
    if not answers or not all(answers):
        raise ValueError("ground_truth holds an empty answer or none; give at least one non-empty string")
    return answers


def _bare_truth(item: object) -> str:
    if not isinstance(item, str | Real) or (isinstance(item, float) and math.isnan(item)):
        raise ValueError(f"ground_truth holds {item!r:.80}, which is no answer; give strings")
    text = str(item)
    sentence = _TRUTH_SENTENCE.match(text)
    text = text[sentence.end() :] if sentence else text
    return clean_answer(text) if sentence else text.strip()


def _end_of_last_announcement(text: str) -> int | None:
    """Return where the last "the answer is" ends; None without one. Takes time linear in the text."""
    lowered = text.replace("İ", "I").lower()  # the only letter whose lower case has another length
    english = _last_match(lowered, "answer", _NEXT_WORDS, _LAST_WORDS)
    chinese = _last_match(lowered, "答案", _CHINESE_VERB, None)
    return max((end for end in (english, chinese) if end is not None), default=None)


def _last_match(text: str, noun: str, after: re.Pattern[str], before: re.Pattern[str] | None) -> int | None:
    at = text.rfind(noun)
    while at >= 0:
        follows = after.match(text, at + len(noun))
        if follows and (before is None or before.search(text[max(0, at - 40) : at])):
            return follows.end()
        at = text.rfind(noun, 0, at)
    return None


def _first_paragraph(text: str) -> str:
    text = text.lstrip()
    blank = _BLANK_LINE.search(text)
    return text[: blank.start()] if blank else text


def _unwrap(text: str) -> str:
    for opening, closing in _WRAPPERS:
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            return text[1:-1].strip()
    return text.strip("*`").strip()
