"""Numeric answers: when two values, or two truth values, are the same."""

from __future__ import annotations

import re
from decimal import Decimal

from reward.arithmetic import ARITHMETIC
from reward.folding import fold
from reward.quantity import Quantity, is_close, parse_quantity
from reward.wrapping import bare_value

_TRUE = frozenset({"true", "yes", "是", "对", "正确"})
_FALSE = frozenset({"false", "no", "否", "不是", "错误"})
_LOOSE_SIGN = re.compile(r"\s*[-+]\s")
"""A sign apart from its number: as likely a dash."""


def numbers_match(answer: str, truth: str) -> bool:
    """Return whether the answer states the value of the truth, or its truth value where the truth is a boolean.

    In an answer, brackets around the whole and a dash apart from the number are no sign. A truth is read as it is
    written in a table: "(5)" and "- 5" are negative.
    """
    boolean = parse_boolean(truth)
    if boolean is not None:
        return parse_boolean(answer) is boolean
    gold = parse_quantity(truth)
    if gold is None:
        return False
    if fold(answer).strip() == fold(truth).strip():
        return True
    answer = bare_value(answer)
    given = None if _LOOSE_SIGN.match(answer) else parse_quantity(answer)
    return given is not None and quantities_match(given, gold)


def quantities_match(answer: Quantity, truth: Quantity) -> bool:
    """Return whether two quantities are equal within the tolerance.

    Years must be equal; currencies and units that both sides name must agree; a percent sign that only one side has is
    forgiven where the other names neither a unit nor a currency; zero equals only zero.
    """
    if not _are_comparable(answer, truth):
        return False
    if answer.is_year and truth.is_year:
        return answer.value == truth.value
    if is_close(answer.value, truth.value):
        return True
    return answer.percent != truth.percent and is_close(_fraction(answer), _fraction(truth))


def parse_boolean(text: str) -> bool | None:
    """Return the truth value that a text states; None where it states none."""
    word = fold(text).strip(" .,;:!\"'").casefold()
    if word in _TRUE:
        return True
    return False if word in _FALSE else None


def _are_comparable(answer: Quantity, truth: Quantity) -> bool:
    if answer.percent != truth.percent and any(side.unit or side.currencies for side in (answer, truth)):
        return False
    if answer.currencies and truth.currencies and not answer.currencies & truth.currencies:
        return False
    if answer.unit and truth.unit:
        return answer.unit == truth.unit
    return not ((answer.currencies and truth.unit) or (answer.unit and truth.currencies))


def _fraction(quantity: Quantity) -> Decimal:
    return quantity.value.scaleb(-2, ARITHMETIC) if quantity.percent else quantity.value
