"""Quantities: the one value that a short text states. Decimal arithmetic, never `eval`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

from reward.folding import fold

ARITHMETIC = Context(prec=300, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""Never raises: what has no value becomes NaN or infinite, and those match nothing."""

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
_CURRENCY_SYMBOLS = frozenset("$€£¥₹₩₽₿฿₫₪₺")
_CURRENCIES = frozenset({
    "usd", "us$", "c$", "ca$", "a$", "au$", "hk$", "nt$", "s$", "r$", "eur", "gbp", "rmb", "cny", "jpy", "inr", "hkd",
    "cad", "aud", "chf", "krw", "dollar", "dollars", "euro", "euros", "pound", "pounds", "sterling", "yuan",
    "renminbi", "yen", "rupee", "rupees", "franc", "francs", "won", "rs",
    "元", "美元", "人民币", "欧元", "英镑", "日元", "港元", "港币",
})  # fmt: skip
_UNITS = frozenset({
    "year", "years", "month", "months", "week", "weeks", "day", "days", "hour", "hours", "minute", "minutes", "second",
    "seconds", "share", "shares", "unit", "units", "time", "times", "x", "people", "persons", "employees", "customers",
    "stores", "point", "points", "degree", "degrees", "°", "km", "kilometers", "kilometres", "m", "meters", "metres",
    "cm", "mm", "miles", "feet", "ft", "inches", "kg", "kilograms", "g", "grams", "tons", "tonnes", "barrels", "per",
    "年", "个月", "天", "股", "倍", "人", "个",
})  # fmt: skip
"""Words behind a number that do not change its value; any other word leaves the answer to the judge."""
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


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value as it was written: 5 % is value 5 with the percent sign, not yet 0.05."""

    value: Decimal
    percent: bool


def parse_quantity(text: str) -> Quantity | None:
    """Return the one value that a text states; None where it states none, several, or something else than a number.

    Of a chain (`3 + 2 = 5`, `x ≈ 5`) it is the last value. Understood are signs and accounting negatives, currency,
    thousands separators, scale words, percent, powers of ten, simple fractions and a following unit.
    """
    if len(text) > _MAX_CHAIN_CHARS:
        return None
    text = fold(text).lstrip().rstrip(" .!。")
    if _FORBIDDEN.search(text):
        return None
    *steps, value = _CHAIN.split(text)
    if any(steps) and _ALTERNATIVES.search(text):
        return None
    value = value.lstrip(" ,;:").rstrip(" .,;:。")
    hedge = _HEDGES.match(value)
    value = value[hedge.end() :] if hedge else value
    return _Reader(value).read() if len(value) <= _MAX_CHARS else None


class _Reader:
    """A parser of `prefixes number suffixes` in one short text; any other text states no value."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_TOKEN.finditer(text))
        self._at = 0
        self._sign = ""
        self._bracket = self._accounting = self._currency = self._percent = False
        self._power = 0

    def read(self) -> Quantity | None:
        """Return the quantity, or None where the text is not exactly one."""
        while self._accept_prefix(self._peek()):
            self._at += 1
        value = self._read_value()
        if value is None or not self._read_suffixes():
            return None
        value = value.scaleb(self._power, ARITHMETIC)
        negative = self._sign == "-" or (self._accounting and not self._sign)
        return Quantity(ARITHMETIC.minus(value) if negative else value, self._percent)

    def _accept_prefix(self, token: str) -> bool:
        word = token.casefold()
        if word in {"-", "+", "minus", "negative", "负"} and not self._sign:
            self._sign = "+" if word == "+" else "-"
        elif token == "(" and not self._bracket and not self._sign:
            self._bracket = self._accounting = True
        elif _is_currency(word) and not self._currency:
            self._currency = True
        elif word == "百分之" and not self._percent:
            self._percent = True
        else:
            return word == "." and self._currency  # "Rs. 5"
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
        self._at += 1
        divisor = self._take_number()
        return ARITHMETIC.add(whole, ARITHMETIC.divide(value, divisor)) if divisor else None

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
        scale = _SCALES.get(word, _CAPITAL_SCALES.get(token.upper() if self._currency else token))
        if token == ")" and self._bracket:
            self._bracket = False
        elif (per_cent or word in _PERCENTS) and not self._percent:
            self._at += per_cent
            self._percent = True
        elif scale is not None:
            self._power += scale
        else:
            return _is_currency(word) or word in _UNITS
        return True


def _is_currency(word: str) -> bool:
    return word in _CURRENCIES or word in _CURRENCY_SYMBOLS
