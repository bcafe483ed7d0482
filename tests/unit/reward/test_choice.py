import pytest

from reward.choice import choice_letter, choices_match


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "B.", "(B)", "(b)", "[B]", "（B）", "**B**", "B)", "B) The tenant pays", "B. The tenant pays",
        "B: the tenant", "B - the tenant", "B、租户", "(B) The tenant pays", "(B) A tenant pays", "(B) (B)",
        "Option B", "option (B)", "选项B", "B, because the lease says so",
    ],
)  # fmt: skip
def test_one_letter_is_read_with_or_without_brackets_and_text(text):
    assert choice_letter(text) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "", "Because of that", "Bob", "B's", "D-Day", "C major", "A tenant", "a.m.", "e.g. this", "B or C", "A or B",
        "(A) or (B)", "B, C", "B and C", "B/C", "A/B", "ABCD", "A B C D", "(B) not (C)", "(B) maybe C", "(B) or A",
        "(B) is wrong", "not B", "B?", "The tenant pays", "12",
    ],
)  # fmt: skip
def test_a_word_or_more_than_one_letter_is_no_choice(text):
    assert choice_letter(text) is None


def test_the_truth_may_carry_brackets_or_text():
    assert choices_match("b", "(B)")
    assert choices_match("(B) The tenant pays", "B. The tenant pays")
    assert not choices_match("C", "B")
    assert not choices_match("The tenant pays", "The tenant pays")
