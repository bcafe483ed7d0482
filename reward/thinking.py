"""Where a response stops thinking and starts answering: the tags of the known model families."""

from __future__ import annotations

import re
from functools import lru_cache

from actors.thinking import FAMILIES

_END_OF_TURN = re.compile(r"(?:\s|<[|｜][^|｜<>]{1,60}[|｜]>|</?s>|<eos>|<end_of_turn>)*\Z")


def text_after_thinking(response: str, *, required: bool = False, tags: tuple[str, str] | None = None) -> str | None:
    """Return what a response says behind its thinking; None where the thinking never ends.

    An opening tag without a closing one is an unfinished thought. A closing tag at the very end, behind which nothing
    stands, is ignored where the thinking had ended before, or was never opened.

    Args:
        response: the whole response.
        required: a response without a closing tag is an unfinished thought as well (the chat template opens it).
        tags: a pair of tags beside those of the known families.
    """
    opening, closing = _patterns(tags)
    ends = list(closing.finditer(response))
    stop = _start_of_stray_closing(response, ends, may_be_first=not required and opening.search(response) is None)
    if not ends and required:
        return None
    start = ends[-1].end() if ends else 0
    opened = opening.search(response, start, stop)
    if opened is None:
        return response[start:stop]
    return response[start : opened.start()] if ends else None


def thinking_of(response: str, *, tags: tuple[str, str] | None = None) -> str:
    """Return what a response thinks: the text before its last closing tag; all of it where there is none."""
    opening, closing = _patterns(tags)
    ends = list(closing.finditer(response))
    thinking = response[: ends[-1].start()] if ends else response
    opened = opening.match(thinking)
    return thinking[opened.end() :] if opened else thinking


def _start_of_stray_closing(response: str, ends: list[re.Match[str]], *, may_be_first: bool) -> int:
    """Remove closing tags with nothing behind them from `ends`; return where the text before them stops.

    The first closing tag ends the thinking, unless nothing was opened (`may_be_first`).
    """
    stop = len(response)
    while ends and (len(ends) > 1 or may_be_first) and _END_OF_TURN.match(response, ends[-1].end(), stop):
        stop = ends.pop().start()
    return stop


@lru_cache(maxsize=16)
def _patterns(tags: tuple[str, str] | None) -> tuple[re.Pattern[str], re.Pattern[str]]:
    pairs = [*FAMILIES.values(), *([tags] if tags else [])]
    opening = re.compile("|".join(re.escape(opened) for opened, _ in pairs))
    closing = re.compile("|".join(re.escape(closed) for _, closed in pairs))
    return opening, closing
