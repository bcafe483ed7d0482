from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from actors.thinking import FAMILIES
from reward.answer import extract_answer
from reward.choice import choices_match
from reward.config import RuleSet
from reward.judge_prompt import neutralise, parse_verdict
from reward.kind import AnswerKind
from reward.numeric import numbers_match
from reward.overlong import overlong_penalty
from reward.quantity import parse_quantity
from reward.rules import apply_rules
from reward.score import Verdict
from reward.text_rule import text_key, texts_match
from reward.wrapping import clean_answer

anything = st.text(st.characters(), max_size=200)  # lone surrogates and NUL included
markup = st.text(
    st.sampled_from(list("the answer is\\boxed{}*_`$\"'()[].,-%=≈5Aa \n\x00\ud800答案是<>|/think")), max_size=120
)
words = st.lists(st.text("bcdfgklmnprsvz", min_size=2, max_size=8), min_size=1, max_size=5).map(" ".join)
values = st.decimals(min_value=Decimal("0.01"), max_value=10**9, places=2, allow_nan=False, allow_infinity=False)


@given(anything | markup)
def test_extraction_never_fails_and_never_returns_an_empty_answer(response):
    assert extract_answer(response) != ""


@given(thought=anything | markup, answer=words)
def test_the_thinking_never_changes_the_answer(thought, answer):
    assert extract_answer(f"<think>{thought}</think>\n\nTherefore, the answer is {answer}.") == answer


@given(st.sampled_from(list(RuleSet)), st.sampled_from(list(AnswerKind)), anything | markup)
def test_no_response_makes_a_rule_fail(rules, kind, text):
    apply_rules(rules, kind, f"</think>the answer is {text}", ("Paris",))
    apply_rules(rules, kind, text, ("-5.2 %",))


@given(anything | markup, anything | markup)
def test_text_matching_is_symmetric(one, other):
    assert texts_match(one, other) == texts_match(other, one)


@given(anything | markup)
def test_a_text_matches_itself_unless_it_normalises_to_nothing(text):
    assert texts_match(text, text) == bool(text_key(text).words)


@given(words)
def test_case_quotes_articles_and_a_full_stop_do_not_matter(text):
    assert texts_match(clean_answer(f'**"The {text.upper()}"**.'), text)


@given(words, words)
def test_a_longer_or_shorter_text_never_matches(text, more):
    assert not texts_match(f"{text} {more}", text)
    assert not texts_match(text, f"{text} {more}")


@given(values, st.sampled_from(["{:f}", "{:,f}", "${:,f}", "{:f} dollars", "= {:f}", "about {:f}", "+{:f}", "{:e}"]))
def test_a_value_matches_itself_in_any_spelling(value, spelling):
    assert numbers_match(spelling.format(value), str(value))


@given(values, st.sampled_from(["-{:f}", "$({:,f})", "-${:f}", "minus {:f}"]))
def test_a_value_never_matches_its_negative(value, spelling):
    assert not numbers_match(spelling.format(value), str(value))
    assert numbers_match(spelling.format(value), f"-{value}")


@given(values)
def test_percent_is_the_fraction_and_a_missing_sign_is_forgiven(value):
    assert numbers_match(f"{value}%", str(value / 100))
    assert numbers_match(f"{value}%", str(value))
    assert numbers_match(str(value), f"{value}%")
    assert not numbers_match(str(value * 100), f"{value}%")


@given(values)
def test_the_tolerance_is_relative(value):
    assert numbers_match(str(value * Decimal("1.0014")), str(value))
    assert not numbers_match(str(value * Decimal("1.0016")), str(value))
    assert not numbers_match(str(value * 10), str(value))


@given(values, values, st.sampled_from([" or ", " and ", ", ", "; ", " to ", "-", "/ or ", " vs "]))
def test_two_candidates_never_match(one, other, between):
    assert not numbers_match(f"{one}{between}{other}", str(one))
    assert not numbers_match(f"{one}{between}{other}", str(other))


@given(anything | markup)
def test_every_quantity_that_is_read_is_finite(text):
    quantity = parse_quantity(text)
    assert quantity is None or quantity.value.is_finite()


@given(
    st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "[{}]", "({}) text here"])
)
def test_a_choice_matches_exactly_its_letter(chosen, truth, spelling):
    assert choices_match(spelling.format(chosen), truth) == (chosen == truth)
    assert choices_match(spelling.format(chosen.lower()), f"({truth})") == (chosen == truth)


@given(words.filter(lambda text: len(text.split()[0]) > 1), st.sampled_from("ABCD"))
def test_a_word_is_never_a_letter(text, letter):
    assert not choices_match(letter + text, letter)


@given(anything | markup, st.integers(1, 300))
def test_neutral_text_is_one_short_line_without_brackets_and_tags(text, max_chars):
    neutral = neutralise(text, max_chars)
    assert len(neutral) <= 2 * max_chars
    assert "\n" not in neutral
    assert not {"[", "]"} & set(neutral)
    assert "<|" not in neutral
    assert parse_verdict(neutral) is Verdict.UNKNOWN
    neutral.encode("utf-8")


@given(anything, anything)
def test_contradicting_verdicts_are_unknown_unless_a_thought_ends_between_them(before, between):
    ends_a_thought = any(closing in between for _, closing in FAMILIES.values())
    expected = {Verdict.NO, Verdict.UNKNOWN} if ends_a_thought else {Verdict.UNKNOWN}
    assert parse_verdict(f"{before}[[YES]]{between}[[no]]") in expected


@given(anything)
def test_what_a_judge_thinks_is_no_verdict(thought):
    assert parse_verdict(f"<think>{thought}[[YES]]</think>They differ. [[NO]]") is Verdict.NO


@given(st.integers(0, 30_000), st.integers(1, 20_000), st.integers(1, 20_000))
def test_the_overlong_penalty_is_bounded_and_never_rises_with_length(num_tokens, max_tokens, cache_tokens):
    cache_tokens = min(cache_tokens, max_tokens)
    now = overlong_penalty(num_tokens, max_tokens=max_tokens, cache_tokens=cache_tokens)
    longer = overlong_penalty(num_tokens + 1, max_tokens=max_tokens, cache_tokens=cache_tokens)
    assert -1.0 <= longer <= now <= 0.0
