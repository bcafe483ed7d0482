"""Numeric answers: when two values, or two truth values, are the same."""

from __future__ import annotations

from decimal import Decimal

from reward.folding import fold
from reward.quantity import ARITHMETIC, Quantity, parse_quantity

RELATIVE_TOLERANCE = Decimal("0.0015")
"""Two values are the same within 0.15 % of the truth, as in the released code."""

_TRUE = frozenset({"true", "yes", "是", "对", "正确"})
_FALSE = frozenset({"false", "no", "否", "不是", "错误"})


def numbers_match(answer: str, truth: str) -> bool:
    """Return whether the answer states the value of the truth, or the same boolean where the truth is one."""
    boolean = parse_boolean(truth)
    if boolean is not None:
        return parse_boolean(answer) is boolean
    gold = parse_quantity(truth)
    given = parse_quantity(answer) if gold else None
    return gold is not None and given is not None and quantities_match(given, gold)


def quantities_match(answer: Quantity, truth: Quantity) -> bool:
    """Return whether two values are equal within the tolerance.

    A percent sign that only one side has is accepted; zero equals only zero.
    """
    if _is_close(answer.value, truth.value):
        return True
    return answer.percent != truth.percent and _is_close(_fraction(answer), _fraction(truth))


def parse_boolean(text: str) -> bool | None:
    """Return the truth value that a text states; None where it states none."""
    word = fold(text).strip(" .,;:!\"'").casefold()
    if word in _TRUE:
        return True
    return False if word in _FALSE else None


def _fraction(quantity: Quantity) -> Decimal:
    return quantity.value.scaleb(-2, ARITHMETIC) if quantity.percent else quantity.value


def _is_close(answer: Decimal, truth: Decimal) -> bool:
    if not (answer.is_finite() and truth.is_finite()):
        return False
    if answer.is_zero() or truth.is_zero():
        return answer.is_zero() and truth.is_zero()
    distance = ARITHMETIC.abs(ARITHMETIC.subtract(answer, truth))
    return distance <= ARITHMETIC.multiply(RELATIVE_TOLERANCE, ARITHMETIC.abs(truth))
