import time

import pytest

from cluster.recipe.strict_yaml import MAX_CHARS, YamlFault, read_yaml


def fault_of(text):
    with pytest.raises(YamlFault) as refused:
        read_yaml(text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12_000", 12000),
        ("0x10", 16),
        ("-3.5", -3.5),
        ("1.0e-6", 1e-6),
        ("yes", True),
        ("~", None),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
        ("2024-13-01", "2024-13-01"),
        ("2024-01-01", "2024-01-01"),
        ("1:30:00", "1:30:00"),
        ("0777", "0777"),
        ("=", "="),
    ],
)
def test_values_are_what_they_look_like(text, value):
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is there twice, first in line 1; remove one of them"),
        ("x: {a: 1, a: 2}", "line 1, column 11: the key 'a' is there twice, first in line 1"),
        ("a: &x 1\nb: *x\n", "line 2, column 4: the alias *x is not read; write the value out"),
        ("a: {<<: {b: 1}}", "line 1, column 5: << is not read; write the keys out, or use `extends`"),
        ("a: !!binary gA==", "line 1, column 4: the tag !!binary is not read; remove it"),
        ("a: !!timestamp x", "the tag !!timestamp is not read"),
        ("1: a", "line 1, column 1: a key that is no text; quote it, or check brackets and indentation"),
        ("? [a]\n: b", "line 1, column 3: a key that is no text"),
        ("[" * 40, "line 1, column 33: nested deeper than 32 levels"),
        ("a: \x1b[2J", "line 1: holds the control character #x001b; remove it"),
        ('a: "\\0"', "line 1, column 4: holds the control character #x0000; remove it"),
        ('a: "\\ud800"', "line 1, column 4: holds the control character #xd800; remove it"),
        ('a: "\\U00110000"', "an escape in a quoted text names no character"),
        ("9" * 5000, "is beyond every number of a recipe; correct it"),
        (
            "a: b: c",
            "line 1, column 5: mapping values are not allowed here; check indentation, brackets and quotes there",
        ),
        ("a: 1\n\tb: 2", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("#" * (MAX_CHARS + 1), f"{MAX_CHARS + 1} characters, more than the {MAX_CHARS} of the longest recipe"),
    ],
)
def test_what_no_recipe_needs_is_refused_with_its_line(text, message):
    assert message in fault_of(text)


def test_aliases_that_multiply_are_refused_at_once():
    bomb = "l0: &l0 [x, x]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30))
    begun = time.monotonic()
    assert "line 2, column 10: the alias *l0 is not read" in fault_of(bomb)
    assert time.monotonic() - begun < 1
