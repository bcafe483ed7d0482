import json
from pathlib import Path

import pytest

from reward.answer import accepted_answers
from reward.config import RuleSet
from reward.judge_prompt import parse_verdict
from reward.kind import AnswerKind, kind_of
from reward.released import released_answer, released_match
from reward.rules import apply_rules, strict_match

DATA = Path(__file__).parents[2] / "data"
KINDS = {"docqa": AnswerKind.TEXT, "docmath": AnswerKind.NUMERIC, "choice": AnswerKind.CHOICE}


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_released_rules_agree_with_the_released_code_on_all_300_cases():
    cases = rows("released_dev.jsonl")
    scores = {
        row["id"]: float(
            apply_rules(RuleSet.RELEASED, kind_of(row["data_source"]), row["response"], [row["ground_truth"]]).accepted
        )
        for row in cases
    }
    assert len(scores) == 300
    assert scores == {row["id"]: row["released_score"] for row in cases}


def test_the_strict_rules_agree_with_the_hand_labels_on_all_37_cases():
    cases = rows("strict_dev.jsonl")
    scores = {
        row["id"]: int(apply_rules(RuleSet.STRICT, KINDS[row["kind"]], row["response"], [row["ground_truth"]]).accepted)
        for row in cases
    }
    assert len(scores) == 37
    assert scores == {row["id"]: row["rule"] for row in cases}


def test_the_strict_rules_agree_with_the_hand_labels_on_bare_answers_too():
    for row in rows("strict_dev.jsonl"):
        matched = strict_match(KINDS[row["kind"]], row["answer"], accepted_answers(row["ground_truth"]))
        assert matched == bool(row["rule"]), row


def test_verdicts_agree_with_the_labels():
    for row in rows("verdict_dev.jsonl"):
        assert parse_verdict(row["judge_output"]) == row["verdict"], row


def test_the_kind_follows_the_data_source_unless_overridden():
    assert kind_of("docmath_v1") is AnswerKind.NUMERIC
    assert kind_of("long_toc_choices_0_20000") is AnswerKind.CHOICE
    assert kind_of("musique_v1") is AnswerKind.TEXT
    assert kind_of("demo") is AnswerKind.TEXT
    assert kind_of("demo", {"demo": AnswerKind.NUMERIC}) is AnswerKind.NUMERIC


def test_any_accepted_answer_is_enough():
    response = "<think></think> Therefore, the answer is Frankfurt"
    outcome = apply_rules(RuleSet.STRICT, AnswerKind.TEXT, response, ["Frankfurt am Main", "Frankfurt"])
    assert outcome.accepted
    assert outcome.truths == ()


def test_a_rejected_answer_carries_all_truths_for_the_judge():
    response = "<think></think> Therefore, the answer is Berlin"
    outcome = apply_rules(RuleSet.STRICT, AnswerKind.TEXT, response, ["Frankfurt am Main", "Frankfurt"])
    assert (outcome.answer, outcome.accepted) == ("Berlin", False)
    assert outcome.truths == ("Frankfurt am Main", "Frankfurt")


def test_the_strict_rules_refuse_a_ground_truth_without_an_answer():
    with pytest.raises(ValueError, match="ground_truth"):
        apply_rules(RuleSet.STRICT, AnswerKind.TEXT, "the answer is x", [""])


@pytest.mark.parametrize(
    ("kind", "answer", "truth", "accepted"),
    [
        (AnswerKind.TEXT, "the", "Paris", True),
        (AnswerKind.TEXT, "Paris or London or Rome", "Paris", True),
        (AnswerKind.TEXT, "1", "2013", True),
        (AnswerKind.TEXT, "!?", "Paris", True),
        (AnswerKind.NUMERIC, "-5", "5", True),
        (AnswerKind.NUMERIC, "0.05", "5", True),
        (AnswerKind.NUMERIC, "5000", "5", True),
        (AnswerKind.NUMERIC, "50", "5", False),
        (AnswerKind.NUMERIC, ".5", "5", True),
        (AnswerKind.NUMERIC, "007", "0", True),
        (AnswerKind.NUMERIC, "1.2.3", "0", True),
        (AnswerKind.NUMERIC, "True", "1", False),
        (AnswerKind.NUMERIC, "9" * 5000, "0", True),
        (AnswerKind.NUMERIC, "9" * 1000 + ".5", "5", False),
    ],
)
def test_the_released_rules_keep_the_faults_of_the_released_code(kind, answer, truth, accepted):
    read = released_answer(kind, f"<think></think>Therefore, the answer is {answer}")
    assert (read is not None and released_match(kind, read, truth)) is accepted


def test_the_released_rules_never_send_a_choice_to_the_judge():
    outcome = apply_rules(RuleSet.RELEASED, AnswerKind.CHOICE, "</think>The correct answer is (A)", ["(B)"])
    assert (outcome.answer, outcome.accepted, outcome.truths) == ("A", False, ())


def test_the_released_rules_judge_only_what_they_could_read():
    unread = apply_rules(RuleSet.RELEASED, AnswerKind.NUMERIC, "</think>the answer is \\boxed{5}", ["5"])
    assert (unread.answer, unread.truths) == (None, ())
    read = apply_rules(RuleSet.RELEASED, AnswerKind.NUMERIC, "</think>the answer is 6.", ["5"])
    assert (read.answer, read.truths) == ("6", ("5",))
