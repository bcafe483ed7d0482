"""Right answers in the shapes that models write are accepted; wrong ones in the same shapes are not."""

import json
from pathlib import Path

import pytest

from benchmarks.reward_shapes import SHAPES, SIGNS, paid
from reward.answer import extract_answer
from reward.config import RuleSet
from reward.kind import AnswerKind, kind_of
from reward.rules import apply_rules

CASES = [json.loads(line) for line in (Path(__file__).parents[2] / "data/answers_dev.jsonl").read_text().splitlines()]
ANSWERS = {
    AnswerKind.TEXT: ("Sam Bankman-Fried", "Barack Obama", "Caroline Ellison"),
    AnswerKind.NUMERIC: ("37.5", "-12.41", "1,503"),
    AnswerKind.CHOICE: ("B", "D", "A"),
}
BY_A_JUDGE = {
    "a055", "a056", "a059", "a061", "a062", "a063", "a067", "a078", "a087", "a088", "a115", "a116", "a124", "a125",
    "a126", "a129", "a137", "a154", "a155",
}  # fmt: skip
"""Right answers that only a judge can know: dates in another order, synonyms, names turned round."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", list(AnswerKind))
def test_a_right_answer_is_accepted_in_every_shape(shape, kind):
    for answer in ANSWERS[kind]:
        assert paid(kind, SHAPES[shape].format(answer.lstrip("-")), (answer.lstrip("-"),))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", list(AnswerKind))
def test_a_wrong_answer_is_accepted_in_none(shape, kind):
    for answer in ANSWERS[kind]:
        for other in ANSWERS[kind]:
            assert answer == other or not paid(kind, SHAPES[shape].format(other), (answer,))


@pytest.mark.parametrize("sign", SIGNS)
def test_brackets_and_dashes_around_a_positive_value_are_no_minus(sign):
    assert not paid(AnswerKind.NUMERIC, f"Therefore, the answer is {sign.format('12.41')}.", ("-12.41",))
    assert paid(AnswerKind.NUMERIC, f"Therefore, the answer is {sign.format('12.41')}.", ("12.41",))


def test_a_dash_glued_to_a_number_is_left_to_the_judge():
    for response in ("Therefore, the answer is –42.", "Therefore, the answer is —42."):
        assert not paid(AnswerKind.NUMERIC, response, ("42",))
        assert not paid(AnswerKind.NUMERIC, response, ("-42",))
    assert paid(AnswerKind.NUMERIC, "Therefore, the answer is −42.", ("-42",)), "a minus sign is a sign"


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_case_that_failed_elsewhere_is_scored_as_a_careful_person_would(case):
    kind = kind_of(case["data_source"])
    outcome = apply_rules(RuleSet.STRICT, kind, case["response"], [case["ground_truth"]])
    assert outcome.accepted == bool(case["right"] and case["id"] not in BY_A_JUDGE)
    if case["right"] and not outcome.accepted:
        assert outcome.answer, "the judge is asked with the answer"
        assert outcome.truths == (case["ground_truth"],)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("\\boxed{41}. Therefore, the answer is 42", "41"),
        ("Therefore, the answer is 42. The answer is rounded to two decimals.", "42"),
        ("Therefore, the answer is 41. Wait, the answer is 42.", "41"),
        ("The answer is 41. Wait, the answer is 42.", "42"),
        ("The answer to the question is Paris.", "Paris"),
        ("The answers are Paris and Rome.", "Paris and Rome"),
        ("the answer must be Paris", "Paris"),
        ("## Final Answer\nParis", "Paris"),
        ("Answer: Paris\n\nThe answer is given in paragraph 3.", "Paris"),
        ("the answer is United Airlines", "United Airlines"),
        ("The answer is Rome, and\nParis", "Rome, and Paris"),
        ("('Therefore, the answer is Paris')", "Paris"),
        ("Therefore, the answer is Paris <b>", "Paris"),
        ("Therefore, the answer is 5' 10\"", "5' 10\""),
    ],
)
def test_the_announcement_that_counts_is_the_best_and_then_the_last(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response", ["The answer might be Paris", "an answer: none", "answers vary: see below", "no"])
def test_a_guess_announces_nothing(response):
    assert extract_answer(response) is None
