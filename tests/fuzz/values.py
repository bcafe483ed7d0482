"""Hostile values, as text of a YAML or JSON file and as Python objects, and damage to bytes."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("a", "", "null", "-1", "0", "1e999", "été", "日本", "a\x00b", "\x1b[31mred", "../../etc",
"~nobody_here/x", "/dev/zero",
         "/proc/self/mem", "a/" * 200, "x" * 300, "x" * 5000, "%s%n", "[bold]", "</think>", "<|im_end|>",
         "{0}", "a\nb", "data\n\n  x: 1")  # fmt: skip
SURROGATE = "\ud800"

YAML_VALUES = (
    "null", "~", "", "[]", "{}", "[[]]", "{{}}", "-1", "0", "1", "2", "0.5", "-0.0", "1e400", "-1e400", ".nan", ".inf",
    "-.inf", "9" * 400, "9" * 5000, "4294967296", "18446744073709551616", "-9223372036854775809", "0o777", "0xFF",
    "0b1", "1_000", "1:30:00", "190:20:30.15", "2024-13-01", "2024-02-30", "2024-01-01", "2024-01-01T25:00:00Z",
    "2024-01-01 00:00:00 +99:99", "!!timestamp 2024-13-45", "!!timestamp x", "!!binary gA==", "!!binary '*'",
    "!!binary ä", "!!python/object/apply:os.system [id]", "!!set {a, b}", "!!omap [a: 1]", "!!omap 3",
    "!!pairs [a: 1]", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!null x", "!!str 1", "!!map [a]",
    "!!seq {a: 1}",
    "!foo bar", "!<tag:yaml.org,2002:int> 7", "yes", "no", "on", "'\\0'", '"\\0"', '"\\ud800"', '"\\x1b[31m"',
    '"\\U00110000"', "'" + "a" * 5000 + "'", "[" * 3000, "[" * 300 + "]" * 300, "{a: " * 1500,
    "{a: " * 200 + "1" + "}" * 200,
    "*x", "&x [*x]", "&x {a: *x}", "{? [a]: b}", "{? {a: 1}: b}", "{<<: {a: 1}}", "{<<: 3}", "{<<: [1]}", "=", "@",
    "`", "%", "\t", "|", ">", "| \n  x", "- a", "a: b: c", "{a: 1, a: 2}", "{1: 2}", "{null: 1}", "{true: 1}",
    "{1.5: 1}", "{2024-01-01: 1}", "['a', 1, null, {b: c}]", "'unclosed", '"unclosed', "[1, 2", "{a: 1", "# x", "--- 3",
    "...", "\x00", "\x85", "\ufeff", "\ud83d", "[" + "1," * 20000 + "1]", "1e5", "1e-400", "0.1e-320", "00012", "+5",
    "cpu", "cuda", "auto", "none", "{type: steps, steps: 1}", "{type: vllm}", "{type: nope}", "{type: 3}", "{type: []}",
    "{type: generated}", "{cap: 0}", "{cap: .inf}", "'/'", "'.'", "'~'", "~nobody_here/x", "/dev/null", "/dev/zero",
    "a\u2028b", "'x/" + "y" * 300 + "'", "'" + "y/" * 3000 + "'",
)  # fmt: skip
"""What may stand behind the colon of a key."""


def bomb(rng: random.Random) -> str:
    """Return YAML whose aliases grow without end: each level doubles, or multiplies, the one before."""
    fan, levels = rng.randint(2, 12), rng.randint(4, 40)
    kind = rng.choice(("list", "map", "merge"))
    lines = ["l0: &l0 [x, y]" if kind == "list" else "l0: &l0 {x: y}"]
    for level in range(1, levels):
        before = f"*l{level - 1}"
        if kind == "list":
            body = "[" + ", ".join([before] * fan) + "]"
        elif kind == "map":
            body = "{" + ", ".join(f"k{i}: {before}" for i in range(fan)) + "}"
        else:
            body = "{<<: [" + ", ".join([before] * fan) + "]}"
        lines.append(f"l{level}: &l{level} {body}")
    return "\n".join(lines) + "\n"


def text(rng: random.Random) -> str:
    """Return a text that somebody may have in a file."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        return "".join(
            chr(rng.choice((rng.randrange(32), rng.randrange(0x250), rng.randrange(0xD800)))) for _ in range(9)
        )
    if kind == 2:
        return SURROGATE + "x"
    if kind == 3:
        return "word " * rng.choice((1, 10, 500))
    if kind == 4:
        return rng.choice(
            (
                "Therefore, the answer is 7",
                "<think>a</think> the answer is \\boxed{" + "{" * 99,
                "1/0",
                "9" * 5000,
                "1e9999",
            )
        )
    return str(rng.random())


def json_value(rng: random.Random, depth: int = 0) -> Any:
    """Return any JSON value, and the numbers that Python writes although JSON has none of them."""
    kind = rng.randrange(12 if depth < 3 else 9)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice((0, 1, -1, 7, 2**31, 2**63, 2**64, 10**400, -(10**30)))
    if kind == 4:
        return rng.choice((0.0, -0.0, 1.5, 1e308, float("nan"), float("inf"), float("-inf"), 5e-324))
    if kind == 5:
        return rng.choice((True, False))
    if kind == 6:
        return None
    if kind == 7:
        return []
    if kind == 8:
        return {}
    if kind == 9:
        return [json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 10:
        return {text(rng): json_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(([{"role": "user", "content": "x"}], [[["x"]]], {"a": {"b": [None]}}))


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return content after an accident: cut, flipped, doubled, or with foreign bytes in it."""
    if not content:
        return content
    place = rng.randrange(len(content))
    end = min(len(content), place + rng.choice((1, 4, 64, 4096)))
    kind = rng.randrange(7)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + b"\0" * (end - place) + content[end:]
    if kind == 3:
        return (
            content[:place]
            + rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\r", b"\x1b[2J", b"\xef\xbb\xbf"))
            + content[place:]
        )
    if kind == 4:
        return content[:place] + content[end:]
    if kind == 5:
        return content + content[place:end]
    return rng.choice(
        (b"", b"\0" * 100, b"PAR1", b"PAR1" + bytes(200) + b"PAR1", b"\xff" * 64, content * 2, b"{}", b"[]", b"null")
    )
