"""Quantities: the one value that a short text states. Decimal arithmetic, never `eval`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from reward.arithmetic import ARITHMETIC, evaluate
from reward.folding import fold
from reward.units import currencies_of, unit_of

_MAX_CHARS = 120
"""Longest spelling of one value; anything longer is a sentence, and is left to the judge."""
_MAX_CHAIN_CHARS = 2_000
_MAX_SUFFIXES = 6

_SCALES = {
    "hundred": 2, "thousand": 3, "thousands": 3, "million": 6, "millions": 6, "billion": 9, "billions": 9,
    "trillion": 12, "trillions": 12, "k": 3, "mn": 6, "mln": 6, "bn": 9, "bln": 9, "tn": 12,
    "十": 1, "百": 2, "千": 3, "万": 4, "十万": 5, "百万": 6, "千万": 7, "亿": 8, "十亿": 9, "百亿": 10,
    "千亿": 11, "万亿": 12, "‰": -3, "bp": -4, "bps": -4,
}  # fmt: skip
"""Powers of ten that a word stands for."""
_CAPITAL_SCALES = {"M": 6, "MM": 6, "B": 9, "T": 12}
"""Scales only as capitals, or behind a currency: "5 m" may be metres."""
_PERCENTS = frozenset({"%", "percent", "pct", "percentage"})
_TIMES = frozenset({"x", "X", "×", "*", "·", "⋅"})
_POWERS = frozenset({"^", "**"})

_HEDGES = re.compile(
    r"(?:(?:is\s+)?(?:approximately|approx\.?|about|around|roughly|circa|ca\.)\s*|[~∼≈]\s*|(?:大约为?|约为?|大概)\s*)+",
    re.IGNORECASE,
)
_CHAIN = re.compile(r"[=≈≃≅≒]+")
_FORBIDDEN = re.compile(r"[<>≠≤≥±∓?!_\n]")
_ALTERNATIVES = re.compile(
    r"\b(?:or|and|either|neither|nor|but|not|versus|vs)\b|;|,(?![0-9]{3})|[或和与、不]", re.IGNORECASE
)
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{2,3}(?![0-9]))*,[0-9]{3}(?![0-9])"
    r"|[0-9]{1,3}(?:[ '][0-9]{3}(?![0-9]))+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,5}(?![0-9A-Za-z]))?"
    r"|(?P<word>百分之|[十百千万]?亿|[十百千]?万|[十百千]|[A-Za-z]+\$?|个月|[美欧日港]元|港币|人民币|英镑|[^\W\d_a-zA-Z])"
    r"|(?P<symbol>\*\*|\S)"
)


_YEAR = re.compile(r"(?:1[5-9]|2[01])\d\d(?:\.0+)?")
_LABEL = re.compile(r"\s*(?=[^\W\d])[^=+*/×÷]*\Z")
RELATIVE_TOLERANCE = Decimal("0.0015")
"""Two values are the same within 0.15 % of the truth, as in the released code."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value as it was written: 5 % is value 5 with the percent sign, not yet 0.05."""

    value: Decimal
    percent: bool = False
    currencies: frozenset[str] = frozenset()
    """Codes of the currencies that it may be in; empty without a currency."""
    unit: tuple[str, ...] = ()
    """Words of its unit, each in one spelling."""
    is_year: bool = False
    """Whether it is written like a year: four digits from 1500 to 2199 and nothing else."""


def parse_quantity(text: str) -> Quantity | None:
    """Return the one value that a text states; None where it states none, several, or something else than a number.

    Of a chain (`3 + 2 = 5`, `x ≈ 5`) it is the last value, if all steps before it have that value; the first step may
    be a name instead. Understood are signs and accounting negatives, currency, thousands separators, scale words,
    percent, powers of ten, simple fractions and a following unit.
    """
    if len(text) > _MAX_CHAIN_CHARS:
        return None
    text = fold(text).lstrip().rstrip(" .!。")
    if _FORBIDDEN.search(text):
        return None
    *steps, value = _CHAIN.split(text)
    if any(steps) and _ALTERNATIVES.search(text):
        return None
    quantity = _read(value)
    return quantity if quantity is None or _steps_agree(steps, quantity) else None


def _read(text: str) -> Quantity | None:
    text = text.lstrip(" ,;:").rstrip(" .,;:。")
    hedge = _HEDGES.match(text)
    text = text[hedge.end() :] if hedge else text
    return _Reader(text).read() if len(text) <= _MAX_CHARS else None


def _steps_agree(steps: list[str], last: Quantity) -> bool:
    """Whether every step has the value of the one behind it, or that value is its rounding; the first may be a name."""
    if steps and (not steps[0].strip() or _LABEL.match(steps[0])):
        steps = steps[1:]
    values = [*(_step_value(step) for step in steps), _plain(last)]
    return all(
        step is not None and value is not None and _leads_to(step, value) for step, value in itertools.pairwise(values)
    )


def _step_value(step: str) -> Decimal | None:
    return evaluate(step, lambda operand: _plain(_read(operand)))


def _plain(quantity: Quantity | None) -> Decimal | None:
    if quantity is None:
        return None
    return quantity.value.scaleb(-2, ARITHMETIC) if quantity.percent else quantity.value


def _leads_to(step: Decimal, value: Decimal) -> bool:
    """Whether a step has the value of the next one, or is rounded to it; a fraction may go on as its percentage."""
    candidates = (step, step.scaleb(2, ARITHMETIC))
    return any(is_close(number, value) or _rounded_like(number, value) == value for number in candidates)


def _rounded_like(value: Decimal, like: Decimal) -> Decimal | None:
    exponent = like.as_tuple().exponent
    if not (value.is_finite() and isinstance(exponent, int) and -50 < exponent <= 0 and value.adjusted() < 200):
        return None
    return value.quantize(Decimal(1).scaleb(exponent), rounding=ROUND_HALF_UP, context=ARITHMETIC)


def is_close(answer: Decimal, truth: Decimal) -> bool:
    """Return whether two values are the same within the tolerance; zero equals only zero, NaN and infinity nothing."""
    if not (answer.is_finite() and truth.is_finite()):
        return False
    if answer.is_zero() or truth.is_zero():
        return answer.is_zero() and truth.is_zero()
    distance = ARITHMETIC.abs(ARITHMETIC.subtract(answer, truth))
    return distance <= ARITHMETIC.multiply(RELATIVE_TOLERANCE, ARITHMETIC.abs(truth))


class _Reader:
    """A parser of `prefixes number suffixes` in one short text; any other text states no value."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_TOKEN.finditer(text))
        self._at = 0
        self._sign = ""
        self._bracket = self._accounting = self._percent = False
        self._power = 0
        self._currencies: frozenset[str] = frozenset()
        self._unit: list[str] = []
        self._is_year = bool(_YEAR.fullmatch(text.strip()))

    def read(self) -> Quantity | None:
        """Return the quantity, or None where the text is not exactly one."""
        while self._accept_prefix(self._peek()):
            self._at += 1
        value = self._read_value()
        if value is None or not self._read_suffixes():
            return None
        value = value.scaleb(self._power, ARITHMETIC)
        negative = self._sign == "-" or (self._accounting and not self._sign)
        return Quantity(
            ARITHMETIC.minus(value) if negative else value,
            percent=self._percent,
            currencies=self._currencies,
            unit=tuple(self._unit),
            is_year=self._is_year,
        )

    def _accept_prefix(self, token: str) -> bool:
        word = token.casefold()
        if word in {"-", "+", "minus", "negative", "负"} and not self._sign:
            self._sign = "+" if word == "+" else "-"
        elif token == "(" and not self._bracket and not self._sign:
            self._bracket = self._accounting = True
        elif (currencies := currencies_of(word)) and not self._currencies:
            self._currencies = currencies
        elif word == "百分之" and not self._percent:
            self._percent = True
        else:
            return word == "." and bool(self._currencies)  # "Rs. 5"
        return True

    def _read_value(self) -> Decimal | None:
        value = self._take_number()
        if value is None:
            return None
        if self._peek() in _POWERS:
            return self._take_power_of_ten() if value == 10 else None
        if self._peek() in _TIMES and self._peek(1) == "10" and self._peek(2) in _POWERS:
            self._at += 2
            power = self._take_power_of_ten()
            return None if power is None else ARITHMETIC.multiply(value, power)
        return self._read_fraction(value)

    def _read_fraction(self, value: Decimal) -> Decimal | None:
        whole = Decimal(0)
        if self._next_is_number() and self._peek(1) == "/":
            whole, value = value, self._take_number() or Decimal(0)  # "5 1/2"
        if self._peek() != "/":
            return value
        years = self._is_year_at(-1) and self._is_year_at(1)
        self._at += 1
        divisor = None if years else self._take_number()
        return ARITHMETIC.add(whole, ARITHMETIC.divide(value, divisor)) if divisor else None

    def _is_year_at(self, offset: int) -> bool:
        return bool(_YEAR.fullmatch(self._peek(offset)))

    def _take_power_of_ten(self) -> Decimal | None:
        self._at += 1
        bracket = self._peek() == "("
        self._at += bracket
        sign = self._peek() if self._peek() in {"-", "+"} else ""
        self._at += bool(sign)
        exponent = self._peek()
        self._at += 1 + bracket
        return Decimal(f"1e{sign}{exponent}") if exponent.isdecimal() and len(exponent) <= 5 else None

    def _take_number(self) -> Decimal | None:
        if not self._next_is_number():
            return None
        token = self._tokens[self._at]
        self._at += 1
        return Decimal(re.sub(r"[, ']", "", token["number"]) + (token["exponent"] or ""))

    def _next_is_number(self) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at]["number"] is not None

    def _peek(self, offset: int = 0) -> str:
        at = self._at + offset
        return self._tokens[at][0] if at < len(self._tokens) else ""

    def _read_suffixes(self) -> bool:
        end = self._at + _MAX_SUFFIXES
        while self._at < min(len(self._tokens), end) and self._accept_suffix(self._peek()):
            self._at += 1
        return self._at >= len(self._tokens) and not self._bracket

    def _accept_suffix(self, token: str) -> bool:
        word = token.casefold()
        per_cent = word == "per" and self._peek(1).casefold() == "cent"
        scale = _SCALES.get(word, _CAPITAL_SCALES.get(token.upper() if self._currencies else token))
        if token == ")" and self._bracket:
            self._bracket = False
        elif (per_cent or word in _PERCENTS) and not self._percent:
            self._at += per_cent
            self._percent = True
        elif scale is not None:
            self._power += scale
        elif currencies := currencies_of(word):
            self._currencies = self._currencies & currencies if self._currencies else currencies
            return bool(self._currencies)
        elif unit := unit_of(word):
            self._unit.append(unit)
        else:
            return False
        return True
