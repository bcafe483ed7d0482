"""Multiple choice: one letter, with or without brackets or the text of the option; a longer word is no letter."""

from __future__ import annotations

import re

from reward.wrapping import bare_value, clean_answer

_LEAD = re.compile(
    r"(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter)(?:\s+is)?\s*:?\s*|选项?\s*", re.IGNORECASE
)
_BRACKETED = re.compile(r"[(\[{【]\s?([A-Ha-h])\s?[)\]}】]\s*[.:,、]?\s*(-\s+)?")
_BARE = re.compile(r"([A-Ha-h])(?:\Z|\s?[):、]\s*|[.,]\s+|[.,]\Z|\s+-\s+|选?项\Z)")
_BEYOND_H = re.compile(r"[(\[]?([I-Z])[)\]]?[.:)]?")
"""Letters beyond H stand alone: "I" begins too many sentences."""
_OTHER = re.compile(r"(?<![\w'])(?:[(\[{【]\s?([A-Ha-h])\s?[)\]}】]|([B-Hb-h])(?![\w'+#]))")
_LONE_A = re.compile(
    r"(?:\b(?:or|and|not|nor|than|maybe|perhaps|possibly|but)\s+|\A|[/&,;]\s*)[Aa](?=\Z|\s*[,.;:)?!/&])", re.I
)
_TALK = re.compile(
    r"(?:is|isn't|was|wasn't|are|aren't|can't|cannot|could|would|might|may|seems|and|or|nor|but|not|nor|to|through|vs)\b"
)


def choice_letter(text: str) -> str | None:
    """Return the letter that an answer or a truth chooses, in upper case; None where it chooses none or more than one.

    Letters A to H, and later ones where they are the whole answer. A letter is followed
    by nothing, or by a bracket, a colon, a full stop, a comma or a dash and the text of the option. A second letter
    on its own anywhere, or talk about the letter ("(B) is wrong"), leaves the answer to the judge.
    """
    text = bare_value(clean_answer(text))
    if beyond := _BEYOND_H.fullmatch(text):
        return beyond[1]
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    chosen = _BRACKETED.match(text) or _BARE.match(text)
    if not chosen:
        return None
    letter, rest = chosen[1].upper(), text[chosen.end() :].strip()
    return letter if _is_text_of(letter, rest) else None


def _is_text_of(letter: str, rest: str) -> bool:
    if _TALK.match(rest) or rest.endswith("?"):
        return False
    others = {(other[1] or other[2]).upper() for other in _OTHER.finditer(rest)}
    if letter != "A" and _LONE_A.search(rest):
        others.add("A")
    return others <= {letter}


def choices_match(answer: str, truth: str) -> bool:
    """Return whether the answer chooses the letter that the truth names."""
    letter = choice_letter(answer)
    return letter is not None and letter == choice_letter(truth)
