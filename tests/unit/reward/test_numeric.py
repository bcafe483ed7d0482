from decimal import Decimal

import pytest

from reward.numeric import numbers_match
from reward.quantity import Quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", "5"), ("5.00", "5"), ("007", "7"), (".5", "0.5"), ("+5", "5"), ("-5", "-5"), ("−5", "-5"),
        ("minus 5", "-5"), ("negative 5", "-5"),
        ("(5)", "-5"), ("($5)", "-5"), ("$(5)", "-5"), ("(5.0) million", "-5000000"), ("(5.0 million)", "-5000000"),
        ("(-5)", "-5"), ("(+5)", "5"),
        ("$5", "5"), ("-$5", "-5"), ("$-5", "-5"), ("€5", "5"), ("US$5", "5"), ("USD 5", "5"), ("5 dollars", "5"),
        ("Rs. 5", "5"), ("5 元", "5"),
        ("5,000", "5000"), ("1,234,567.89", "1234567.89"), ("12,34,567", "1234567"), ("1 234 567", "1234567"),
        ("5，０００", "5000"),
        ("5 thousand", "5000"), ("5 million", "5000000"), ("2.5 billion", "2500000000"), ("$5M", "5000000"),
        ("5K", "5000"), ("5 hundred thousand", "500000"), ("5百万", "5000000"), ("3.5亿元", "350000000"),
        ("1.5e3", "1500"), ("1.5E+3", "1500"), ("1.5 x 10^3", "1500"), ("1.5×10³", "1500"), ("10⁻²", "0.01"),
        (r"1.5 \times 10^{3}", "1500"), ("1.5*10**3", "1500"), ("10^3", "1000"), ("10²", "100"),
        ("1/2", "0.5"), ("½", "0.5"), ("5½", "5.5"), (r"\frac{1}{2}", "0.5"),
        ("3 + 2 = 5", "5"), ("x ≈ 5", "5"), ("10/4 = 2.5 ≈ 3", "3"), ("= 5", "5"),
        ("approximately 5", "5"), ("about $5 million", "5000000"), ("~5", "5"), ("约5", "5"),
        ("5 years", "5"), ("2.5x", "2.5"), ("50 bps", "0.005"),
    ],
)  # fmt: skip
def test_one_value_is_read(text, value):
    quantity = parse_quantity(text)
    assert quantity is not None
    assert (quantity.value, quantity.percent) == (Decimal(value), False)


@pytest.mark.parametrize("text", ["5%", "5 %", "5 percent", "5 per cent", "5 pct", "百分之5", "5％", r"5\%"])
def test_a_percentage_keeps_its_sign(text):
    assert parse_quantity(text) == Quantity(Decimal(5), percent=True)


@pytest.mark.parametrize(
    "text",
    [
        "", "-", ".", "$", "()", "five", "5 or 6", "4, 5", "5 and 6", "5; 6", "5-6", "4–6", "5 to 6", "between 4 and 6",
        "5 ± 1", "x = 4 or x = 5", "x=4,x=5", "not 5", ">5", "<5", "≥5", "≠5", "5?", "1.2.3", "1,2", "--5", "5-",
        "-(5)", "(5", "5)", "nan", "inf", "Infinity", "-inf", "0x1F", "1_000", "5 dozen", "5 million 200 thousand",
        "5/0", "1/2/3", "1e999999", "10^999999", "__import__('os').system('true')", "5 basis of 6", "5\n6",
        "9" * 1_000_000, "5 " * 500_000,
    ],
)  # fmt: skip
def test_what_is_not_one_number_has_no_value(text):
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("5", "5.0"), ("5%", "0.05"), ("0.05", "5%"), ("5%", "5"), ("5", "5%"), ("5%", "5%"),
        ("0", "0.0"), ("-0", "0"), ("0%", "0"), ("100.15", "100"), ("99.85", "100"), ("-86.3", "-86.26"),
        ("1e400", "1e400"), ("1" * 100, "1" * 100),
    ],
)  # fmt: skip
def test_equal_values_match(answer, truth):
    assert numbers_match(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("-5", "5"), ("-$5", "5"), ("50", "5"), ("500", "5"), ("5000", "5"), ("500", "5%"), ("5%", "500"),
        ("5 million", "5"), ("100.2", "100"), ("100.16", "100"), ("99.84", "100"), ("0", "0.001"), ("0.0001", "0"),
        ("nan", "nan"), ("inf", "1e400"), ("inf", "inf"), ("1.2.3", "0"), ("007", "0"), ("yes", "1"), ("no", "0"),
        ("5", "about right"), ("1e400", "1e-400"),
    ],
)  # fmt: skip
def test_different_values_do_not_match(answer, truth):
    assert not numbers_match(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth", "matches"),
    [
        ("True", "True", True), ("yes", "True", True), ("Yes.", "true", True), ("no", "False", True),
        ("false", "No", True), ("yes", "False", False), ("1", "True", False), ("0", "False", False),
        ("yes and no", "True", False),
    ],
)  # fmt: skip
def test_a_boolean_truth_takes_a_boolean(answer, truth, matches):
    assert numbers_match(answer, truth) is matches
