"""Hostile inputs of a megabyte score in under a second each, and never as right."""

import time

import pytest

from reward.config import RuleSet
from reward.judge_prompt import imitates_judge_format, neutralise, parse_verdict
from reward.kind import AnswerKind
from reward.rules import apply_rules

MEGABYTE = 1_000_000


def megabyte_of(text):
    return text * (MEGABYTE // len(text))


HOSTILE = {
    "announcements": megabyte_of("the answer is "),
    "spaces after the announcement": "the answer is" + megabyte_of(" ") + "5 5",
    "spaces inside the announcement": "the" + megabyte_of(" ") + "answer",
    "articles": megabyte_of("the "),
    "nouns": megabyte_of("answer "),
    "chinese nouns": megabyte_of("答案"),
    "digits": "the answer is " + megabyte_of("9"),
    "decimal points": "the answer is " + megabyte_of("1."),
    "full stops": "the answer is " + megabyte_of("."),
    "leading points": "the answer is ." + megabyte_of("5") + ".5",
    "acronyms": "the answer is " + megabyte_of("a."),
    "equations": "the answer is " + megabyte_of("5="),
    "thousands": "the answer is 1" + megabyte_of(",000"),
    "quotes": "the answer is " + megabyte_of("\"'"),
    "stars": "the answer is " + megabyte_of("*"),
    "open brackets": "the answer is " + megabyte_of("("),
    "boxes": megabyte_of("\\boxed{"),
    "one box": "\\boxed{" + megabyte_of("{"),
    "latex": "the answer is " + megabyte_of("\\text{"),
    "tags": "the answer is " + megabyte_of("<|"),
    "thoughts": megabyte_of("<think>"),
    "closed thoughts": megabyte_of("</think>"),
    "blank lines": "the answer is \n" + megabyte_of(" \n") + "x",
    "combining marks": "the answer is a" + megabyte_of("\u0315\u0300"),
    "surrogates": "the answer is " + megabyte_of("\ud800"),
    "nul": "the answer is " + megabyte_of("\x00"),
    "chinese announcements": megabyte_of("答案应该是"),
    "thoughts that open in turn": megabyte_of("<think></think>"),
    "fractions": "the answer is " + megabyte_of("\\frac{1}{2}"),
    "open fractions": "the answer is " + megabyte_of("\\frac{"),
    "superscripts": "the answer is 10" + megabyte_of("²"),
    "vulgar fractions": "the answer is " + megabyte_of("½"),
    "exponents": "the answer is 1" + megabyte_of("e9"),
    "powers": "the answer is 2" + megabyte_of("^2"),
    "scale words": "the answer is 1" + megabyte_of(" million"),
    "percents": "the answer is 1" + megabyte_of("%"),
    "currencies": "the answer is " + megabyte_of("$"),
    "minus signs": "the answer is " + megabyte_of("-"),
    "negations": "the answer is " + megabyte_of("not "),
    "candidates": "the answer is " + megabyte_of("C or "),
    "options": "the answer is " + megabyte_of("(B) (C) "),
    "special tokens": "the answer is x" + megabyte_of("<|im_end|>"),
    "quoted dots": "the answer is " + megabyte_of('."'),
    "ligatures that grow": "the answer is " + megabyte_of("ﷺ"),
    "dotted capital i": megabyte_of("İ") + "the answer is x",
}


@pytest.mark.parametrize("rules", list(RuleSet))
@pytest.mark.parametrize("kind", list(AnswerKind))
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_megabyte_scores_zero_in_under_a_second(name, kind, rules):
    truth = {AnswerKind.TEXT: "Zanzibar", AnswerKind.NUMERIC: "37.5", AnswerKind.CHOICE: "C"}[kind]
    start = time.process_time()
    outcome = apply_rules(rules, kind, "<think>\n</think>\n" + HOSTILE[name], (truth,))
    assert time.process_time() - start < 1.0
    pays_for_nothing = rules is RuleSet.RELEASED and kind is AnswerKind.TEXT  # "" is a substring of every truth
    assert not outcome.accepted or pays_for_nothing


@pytest.mark.parametrize(
    "text", ["[[" + " " * MEGABYTE, megabyte_of("[["), megabyte_of("[[yes"), megabyte_of("answer 2")]
)
def test_a_megabyte_of_brackets_is_no_verdict_and_takes_under_a_second(text):
    start = time.process_time()
    assert parse_verdict(text) == "unknown"
    imitates_judge_format(text)
    neutralise(text, 1_000)
    assert time.process_time() - start < 1.0
