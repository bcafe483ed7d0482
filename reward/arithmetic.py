"""Arithmetic in a chain ("3 + 2 = 5"): the value of a sum, product or quotient of numbers. Never `eval`."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Final

ARITHMETIC: Final = Context(prec=300, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""Never raises: what has no value becomes NaN or infinite, and those match nothing."""

_TOKEN = re.compile(
    r"\s*(?:(?P<operand>[^\s+\-*/×÷·()][^+*/×÷·()]*?)\s*(?=[+\-*/×÷·()]|\Z)|(?P<operator>[+\-*/×÷·()]))"
)
_MAX_DEPTH = 8
_OPERATORS: Final[dict[str, Callable[[Decimal, Decimal], Decimal]]] = {
    "+": ARITHMETIC.add,
    "-": ARITHMETIC.subtract,
    "*": ARITHMETIC.multiply,
    "×": ARITHMETIC.multiply,
    "·": ARITHMETIC.multiply,
    "/": ARITHMETIC.divide,
    "÷": ARITHMETIC.divide,
}


def evaluate(text: str, operand: Callable[[str], Decimal | None]) -> Decimal | None:
    """Return the value of an expression with + - × ÷ and brackets; None where the text is none.

    Args:
        text: a folded text of bounded length.
        operand: reads one number with whatever belongs to it (currency, percent, scale); None where it is none.
    """
    tokens = _tokens(text)
    return _Expression(tokens, operand).value() if tokens else None


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text.rstrip()):
        token = _TOKEN.match(text, at)
        if token is None:
            return []
        tokens.append(token["operand"] or token["operator"])
        at = token.end()
    return tokens


class _Expression:
    """Reads `sum = product (± product)*`, `product = factor (×÷ factor)*`, `factor = ± factor | (sum) | number`."""

    def __init__(self, tokens: list[str], operand: Callable[[str], Decimal | None]) -> None:
        self._tokens = tokens
        self._operand = operand
        self._at = 0

    def value(self) -> Decimal | None:
        """Return the value of all tokens, None where they are no expression."""
        value = self._sequence("+-", self._product, 0)
        return value if self._at == len(self._tokens) else None

    def _product(self, depth: int) -> Decimal | None:
        return self._sequence("*×·/÷", self._factor, depth)

    def _sequence(self, operators: str, read: Callable[[int], Decimal | None], depth: int) -> Decimal | None:
        value = read(depth)
        while value is not None and (operator := self._peek()) and operator in operators:
            self._at += 1
            right = read(depth)
            value = None if right is None else _OPERATORS[operator](value, right)
        return value

    def _factor(self, depth: int) -> Decimal | None:
        token = self._peek()
        if not token or depth > _MAX_DEPTH:
            return None
        self._at += 1
        if token in "+-":
            value = self._factor(depth + 1)
            return value if value is None or token == "+" else ARITHMETIC.minus(value)
        if token == "(":
            value = self._sequence("+-", self._product, depth + 1)
            closed = self._peek() == ")"
            self._at += closed
            return value if closed else None
        return self._operand(token)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""
