"""Multiple choice: one letter, with or without brackets or the text of the option; a longer word is no letter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from reward.wrapping import bare_value, clean_answer

_LEAD = re.compile(
    r"(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter)(?:\s+is)?\s*:?\s*|选项?\s*", re.IGNORECASE
)
_BRACKETED = r"[(\[{{【]\s?([A-{upper}a-{lower}])\s?[)\]}}】]\s*[.:,、]?\s*(-\s+)?"
_BARE = r"([A-{upper}a-{lower}])(?:\Z|\s?[):、]\s*|[.,]\s+|[.,]\Z|\s+-\s+|选?项\Z)"
_BEYOND_H = re.compile(r"[(\[]?([I-Z])[)\]]?[.:)]?")
"""Letters beyond H stand alone, unless the truth is one of them: "I" begins too many sentences."""
_OTHER = r"(?<![\w'])(?:[(\[{{【]\s?([A-{upper}a-{lower}])\s?[)\]}}】]|([B-{upper}b-{lower}])(?![\w'+#]))"
_LONE_A = re.compile(
    r"(?:\b(?:or|and|not|nor|than|maybe|perhaps|possibly|but)\s+|\A|[/&,;]\s*)[Aa](?=\Z|\s*[,.;:)?!/&])", re.I
)
_TALK = re.compile(
    r"(?:is|isn't|was|wasn't|are|aren't|can't|cannot|could|would|might|may|seems|and|or|nor|but|not|nor|to|through|vs)\b"
)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Patterns of the letters from A to a last one."""

    bracketed: re.Pattern[str]
    bare: re.Pattern[str]
    other: re.Pattern[str]


@lru_cache(maxsize=26)
def _patterns(last: str) -> _Patterns:
    letters = {"upper": last, "lower": last.lower()}
    return _Patterns(*(re.compile(pattern.format(**letters)) for pattern in (_BRACKETED, _BARE, _OTHER)))


def choice_letter(text: str, *, last: str = "H") -> str | None:
    """Return the letter that an answer or a truth chooses, in upper case; None where it chooses none or more than one.

    Letters A to `last`, and later ones where they are the whole answer. A letter is followed
    by nothing, or by a bracket, a colon, a full stop, a comma or a dash and the text of the option. A second letter
    on its own anywhere, or talk about the letter ("(B) is wrong"), leaves the answer to the judge.
    """
    patterns = _patterns(last)
    text = bare_value(clean_answer(text))
    if beyond := _BEYOND_H.fullmatch(text):
        return beyond[1]
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    chosen = patterns.bracketed.match(text) or patterns.bare.match(text)
    if not chosen:
        return None
    letter, rest = chosen[1].upper(), text[chosen.end() :].strip()
    return letter if _is_text_of(letter, rest, patterns) else None


def _is_text_of(letter: str, rest: str, patterns: _Patterns) -> bool:
    if _TALK.match(rest) or rest.endswith("?"):
        return False
    others = {(other[1] or other[2]).upper() for other in patterns.other.finditer(rest)}
    if letter != "A" and _LONE_A.search(rest):
        others.add("A")
    return others <= {letter}


def choices_match(answer: str, truth: str) -> bool:
    """Return whether the answer chooses the letter that the truth names; a truth beyond H says that there are more."""
    right = choice_letter(truth, last="Z")
    return right is not None and right == choice_letter(answer, last=max("H", right))
