"""Random hostile responses through the whole scorer: no failure, none without end, no pay but for the truth.

A fuzz run is these tests and test_reward_properties.py with HYPOTHESIS_PROFILE=fuzz.
"""

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from reward.config import RewardConfig, RuleSet
from reward.hybrid import HybridScorer
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.kind import AnswerKind
from reward.rules import apply_rules
from reward.score import Verdict
from reward.score_rows import read_score_row, scored_row

TRUTHS = {AnswerKind.TEXT: "Zanzibar", AnswerKind.NUMERIC: "37.5", AnswerKind.CHOICE: "C"}
SOURCES = {AnswerKind.TEXT: "musique", AnswerKind.NUMERIC: "docmath_v1", AnswerKind.CHOICE: "long_toc_choices_0"}
PIECES = (
    "the answer is ", "Therefore, the answer is ", "The correct answer is ", "答案是", "答案：", "</think>",
    "<think>", "\\boxed{", "}", "{", "\\frac{1}{2}", "\\text{", "\\(", "\\)", "$", "**", "*", "`", '"', "'",
    "“", "”", "(", ")", "[", "]", "【", "】", "<|im_end|>", "<|", "|>", "</s>", "\n", "\n\n", " ", "\t", "\x00",
    "\x1b[0m", "\ud800", "\udfff", "\ufffd", "\u200b", "\u202e", "\ufeff", "\u00a0", "\u3000", "İ", "ſ", "ﬁ",
    "½", "²", "１", "٣", "Ⅷ", "a", "the", "an", "or", "and", "not", "is", "A", "B", "D", "0", "1", "2", "9" * 50,
    "-", "−", "–", "+", ".", ",", ":", ";", "?", "!", "%", "％", "‰", "€", "¥", "=", "≈", "~", "/", "^", "e",
    "E", "x", "×", "million", "billion", "k", "bn", "nan", "inf", "Infinity", "1e999", "True", "YES", "[[YES]]",
    "[[NO]]", "Answer 2:", "Rome", "东京", "🙂", "e\u0301", "_", "#", "@", "&", "<b>", "null", "{}", "%s", "{0}",
)  # fmt: skip
"""None of them holds a truth, a part of one, or the digits 3, 5 and 7 of the number."""
junk = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
kinds = st.sampled_from(list(AnswerKind))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Parrot:
    """Repeats the answer, whatever it is, which is never a verdict."""

    async def judge(self, questions):
        return [parse_verdict(judge_messages(question)[1]["content"].split("\n")[1]) for question in questions]


@given(kinds, junk)
def test_junk_never_pays_under_the_strict_rules(kind, text):
    for response in (text, f"</think>the answer is {text}"):
        assert not apply_rules(RuleSet.STRICT, kind, response, (TRUTHS[kind],)).accepted


@given(kinds, junk, st.sampled_from(list(RuleSet)))
def test_every_response_is_scored_in_full(kind, text, rules):
    (score,) = asyncio.run(
        HybridScorer(RewardConfig(rules=rules), Parrot()).score_group(
            data_source=SOURCES[kind], question=text, answers=(TRUTHS[kind],), responses=[text], num_tokens=[1]
        )
    )
    assert score.accuracy in (None, 0.0, 1.0)
    assert score.judge in (None, Verdict.UNKNOWN)
    assert (score.accuracy is None) == (score.judge is Verdict.UNKNOWN)


@given(junk, junk, junk)
def test_the_judge_prompt_keeps_its_three_lines(question, answer, truth):
    content = judge_messages(JudgeQuestion(question=question, answer=answer, truth=truth))[1]["content"]
    assert [line.partition(":")[0] for line in content.splitlines()] == ["Problem", "Answer 1", "Answer 2"]
    assert parse_verdict(content) is Verdict.UNKNOWN
    content.encode("utf-8")


@given(st.dictionaries(st.sampled_from(["id", "data_source", "question", "response", "ground_truth"]), json_values))
def test_a_row_is_scored_or_refused_and_nothing_else(values):
    try:
        row = read_score_row(values)
    except ValueError:
        return
    (score,) = asyncio.run(
        HybridScorer(RewardConfig()).score_group(
            data_source=row.data_source, question=row.question, answers=row.ground_truth, responses=[row.response],
            num_tokens=[1],
        )
    )  # fmt: skip
    json.dumps(scored_row(row, score))
