"""Units and currencies behind or before a number, each in one spelling."""

from __future__ import annotations

from typing import Final

_DOLLARS = frozenset({"USD", "CAD", "AUD", "HKD", "TWD", "SGD"})
_CURRENCIES: Final[dict[str, frozenset[str]]] = {
    spelling: frozenset(codes.split())
    for codes, spellings in {
        " ".join(sorted(_DOLLARS)): "$ dollar dollars",
        "USD": "usd us$ 美元", "CAD": "cad c$ ca$", "AUD": "aud a$ au$", "HKD": "hkd hk$ 港元 港币", "TWD": "nt$",
        "SGD": "s$", "BRL": "r$", "EUR": "€ eur euro euros 欧元", "GBP": "£ gbp pound pounds sterling 英镑",
        "CNY JPY": "¥", "CNY": "cny rmb yuan renminbi 人民币", "JPY": "jpy yen 日元", "CNY HKD TWD": "元",
        "INR": "₹ inr rs rupee rupees", "CHF": "chf franc francs", "KRW": "₩ krw won", "RUB": "₽", "BTC": "₿",
        "THB": "฿", "VND": "₫", "ILS": "₪", "TRY": "₺",
    }.items()
    for spelling in spellings.split()
}  # fmt: skip
"""Codes that a spelling may stand for: "$" is any dollar."""

_UNITS: Final[dict[str, str]] = {
    spelling: spellings.split()[0]
    for spellings in (
        "year years 年", "month months 个月", "week weeks", "day days 天", "hour hours", "minute minutes",
        "second seconds", "share shares 股", "unit units", "time times x 倍", "people persons person 人",
        "employee employees", "customer customers", "store stores", "point points", "degree degrees °",
        "km kilometer kilometers kilometre kilometres",
        "m meter meters metre metres", "cm", "mm", "mile miles", "foot feet ft", "inch inches", "kg kilogram kilograms",
        "g gram grams", "ton tons tonne tonnes", "barrel barrels", "per", "个",
    )
    for spelling in spellings.split()
}  # fmt: skip
"""Words behind a number that do not change its value; any other word leaves the answer to the judge."""


def currencies_of(word: str) -> frozenset[str]:
    """Return the codes of the currencies that a word in lower case may mean; empty where it is none."""
    return _CURRENCIES.get(word, frozenset())


def unit_of(word: str) -> str | None:
    """Return the unit that a word in lower case means, in one spelling; None where it is none."""
    return _UNITS.get(word)
