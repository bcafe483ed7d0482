from decimal import Decimal

import pytest

from reward.arithmetic import evaluate
from reward.numeric import numbers_match
from reward.quantity import parse_quantity


def number(text):
    try:
        return Decimal(text)
    except ArithmeticError:
        return None


@pytest.mark.parametrize(
    ("text", "value"),
    [("3 + 2", "5"), ("3 - 2 * 2", "-1"), ("(3 + 2) × 2", "10"), ("-3 + 2", "-1"), ("10 / 4", "2.5"), ("7", "7")],
)
def test_an_expression_has_its_value(text, value):
    assert evaluate(text, number) == Decimal(value)


@pytest.mark.parametrize("text", ["", "3 +", "(3", "3 3", "x + 1", "()", "(" * 50 + "1" + ")" * 50])
def test_what_is_no_expression_has_none(text):
    assert evaluate(text, number) is None


def test_dividing_by_zero_gives_nothing_that_matches():
    assert not (evaluate("1 / 0", number) or Decimal("NaN")).is_finite()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 2 = 5", "5"), ("Revenue = 50", "50"), ("10/4 = 2.5 ≈ 3", "3"), ("(12 - 10) / 10 = 0.2", "0.2"),
        ("$1,500 - $300 = $1,200", "1200"), ("5/20 = 0.25 = 25%", "25"), ("x = 5", "5"), ("= 5", "5"),
    ],
)  # fmt: skip
def test_a_chain_whose_steps_agree_has_its_last_value(text, value):
    quantity = parse_quantity(text)
    assert quantity is not None
    assert quantity.value == Decimal(value)


@pytest.mark.parametrize("text", ["40 = 42", "41 ≈ 42", "2018 = 50 2019 = 42", "3 + 2 = 6", "2018 = 42", "5 = x = 7"])
def test_a_chain_whose_steps_differ_has_none(text):
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("answer", "truth", "matches"),
    [
        ("5 months", "5 years", False), ("5 years", "5 year", True), ("$5", "5%", False), ("5 times", "5%", False),
        ("$5", "5 dollars", True), ("US$5", "$5", True), ("US$5", "HK$5", False), ("€5", "$5", False),
        ("5 million dollars", "$5,000,000", True), ("3 per year", "3 per day", False), ("5 km", "5", True),
        ("2019", "2018", False), ("2018", "2018.0", True), ("2019", "2018.0", False), ("2018.5", "2018", True),
        ("2019/2020", "1", False), ("1,503", "1,504", True), ("(5)", "(5)", True), ("-5", "(5)", True),
        ("(5)", "-5", False), ("(5)", "5", True), ("$(5)", "-5", True), ("- 5", "5", False), ("- 5", "-5", False),
        ("3 1/2", "3.5", True), (r"3\frac{1}{2}", "3.5", True), (r"3\frac{1}{2}", "15.5", False),
        (r"\frac12", "0.5", True), (r"\frac1{2}", "0.5", True), (r"$\$1.25\,\mathrm{million}$", "1250000", True),
        (r"1{,}000", "1000", True), (r"\dfrac{2+3}{2}", "2.5", False),
    ],
)  # fmt: skip
def test_units_years_and_latex_keep_their_meaning(answer, truth, matches):
    assert numbers_match(answer, truth) is matches
