"""Text from outside is shown, never obeyed: no escape, no forged line, no direction, nothing invisible."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.errors import RunFailed, UserError, first_line, one_line
from curriculum.printable import printable, printable_json, printable_lines

HOSTILE = {
    "ESC": ("\x1b[31mred", r"\x1b[31mred"),
    "CSI of 8 bits": ("\x9b2J", r"\x9b2J"),
    "OSC 8 link": ("\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", r"\x1b]8;;http://evil\x1b\here\x1b]8;;\x1b" + "\\"),
    "title": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "new line": ("a\nerror: forged", r"a\nerror: forged"),
    "carriage return": ("secret\rfine  ", r"secret\rfine  "),
    "backspace": ("rm\b\bls", r"rm\x08\x08ls"),
    "line separator": ("a\u2028b\x85c\x0bd", r"a\u2028b\x85c\x0bd"),
    "bidi override": ("user\u202etxt.exe", r"user\u202etxt.exe"),
    "bidi isolate": ("\u2066a\u2069", r"\u2066a\u2069"),
    "zero width": ("pay\u200bpal\ufeff", r"pay\u200bpal\ufeff"),
    "tag": ("a\U000e0041", r"a\U000e0041"),
    "lone surrogate": ("\udcff", r"\udcff"),
    "null": ("a\0b", r"a\x00b"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_terminal_would_obey_is_shown_as_its_escape(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["", "plain", "[bold]x[/]", "日本語 はい", "«été» 5 % → 7", "🙂", "עברית", "نمی‌خواهم", "a\u00a0b\u3000c"]
)
def test_ordinary_text_of_any_script_stays_as_it_is(text):
    assert printable(text) == text


@given(st.text())
def test_nothing_but_ordinary_characters_is_left(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in shown}
    assert printable(shown) == shown


def test_lines_of_our_own_are_kept():
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_read_back_to_the_same_value(value):
    text = printable_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value
    assert printable_lines(text) == text
    text.encode("utf-8")


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE.keys())
def test_an_error_has_one_printable_line_for_each_fault(text, shown):
    assert UserError(f"key {text}: no", "b=2: no").lines == (f"key {shown}: no", "b=2: no")
    assert one_line(RunFailed(text)) == shown
    assert one_line(ValueError(f"a {text}")).startswith("ValueError: a ")
    for line in (first_line(ValueError(text)), one_line(ValueError(text))):
        assert printable(line) == line
