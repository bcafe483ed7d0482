from collections import Counter
from dataclasses import replace

import pytest

from curriculum.dataset import load_demonstrations
from evaluation.config import DistillConfig, SamplingConfig, VllmGenerator
from evaluation.data_card import card_json, card_markdown, make_card
from evaluation.distill import select, write_demonstrations
from evaluation.filters import RejectedAs
from evaluation.record import Outcome

GOOD = "<think>The text names Vienna.</think>\n\nTherefore, the answer is Vienna."


def config(**values):
    defaults = {"min_response_tokens": 2, "max_total_tokens": 20, "sampling": SamplingConfig(max_prompt_tokens=15)}
    return DistillConfig(generator=VllmGenerator(model="owner/teacher"), sources=("q.jsonl",), **{**defaults, **values})


@pytest.fixture
def good_answer(make_answer):
    def make(sample=0, text=GOOD, **values):
        return make_answer("a", sample, text=text, **values)

    return make


def reasons(make_item, answers, *, accuracy=1.0, **settings):
    accuracies = {answer.key: accuracy for answer in answers}
    selection = select([make_item("a")], answers, accuracies, config(**settings))
    assert len(selection.kept) + selection.rejects.total() == len(answers)
    return [answer.sample for _, answer in selection.kept], dict(selection.rejects)


@pytest.mark.parametrize(("accuracy", "reason"), [(0.0, RejectedAs.WRONG), (None, RejectedAs.UNKNOWN)])
def test_what_is_not_known_to_be_right_is_refused(make_item, good_answer, accuracy, reason):
    assert reasons(make_item, [good_answer()], accuracy=accuracy) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"outcome": Outcome.TRUNCATED}, RejectedAs.TRUNCATED),
        ({"outcome": Outcome.FAILED, "error": "x"}, RejectedAs.FAILED),
        ({"text": "the answer is Vienna"}, RejectedAs.NO_FORMAT),
        ({"response_tokens": 1}, RejectedAs.TOO_SHORT),
        ({"response_tokens": 11}, RejectedAs.TOO_LONG),
        ({"text": GOOD.replace("The", "这是一个非常长的中文句子")}, RejectedAs.MIXED_LANGUAGE),
        ({"text": GOOD.replace("The", "and so on and so on it goes " * 9)}, RejectedAs.REPETITIVE),
        ({"text": GOOD.replace("The", '"a b c d e" "f g h i j" "k l m n o" The')}, RejectedAs.UNGROUNDED),
    ],
)
def test_each_fault_has_its_reason(make_item, good_answer, values, reason):
    assert reasons(make_item, [good_answer(**values)]) == ([], {reason: 1})


def test_the_shortest_good_answer_of_a_question_is_kept(make_item, good_answer):
    answers = [good_answer(sample=i, response_tokens=tokens) for i, tokens in enumerate([6, 4, 5])]
    assert reasons(make_item, answers) == ([1], {RejectedAs.SURPLUS: 2})


def test_near_duplicates_are_left_out_where_several_are_kept(make_item, good_answer):
    other = "<think>Austria is ruled from its biggest city on the Danube.</think>The answer is Vienna"
    answers = [good_answer(sample=0), good_answer(sample=1), good_answer(sample=2, text=other)]
    assert reasons(make_item, answers, max_kept=3) == ([0, 2], {RejectedAs.DUPLICATE: 1})


def test_the_demonstrations_are_read_by_the_warm_up(tmp_path, make_item, good_answer, encoder):
    item = make_item("a")
    write_demonstrations([(item, good_answer())], tmp_path / "sft.parquet")
    encoder.encode_response = lambda text: encoder.encode(text, "")
    found = load_demonstrations(str(tmp_path / "sft.parquet"), encoder=encoder, max_tokens=100)
    (demonstration,) = found.records
    assert demonstration.demonstration_id == "a-0"
    assert len(demonstration.response_ids) == len(GOOD.split())


def test_a_set_without_demonstrations_is_still_a_parquet_file(tmp_path):
    import pyarrow.parquet as pq

    write_demonstrations([], tmp_path / "sft.parquet")
    assert pq.read_table(tmp_path / "sft.parquet").column_names[-3:] == ["question", "answers", "response"]


def test_the_card_accounts_for_every_answer_and_measures_lengths(make_item, make_answer):
    card = make_card(
        num_questions=3,
        num_over_long=1,
        kept=[
            (make_item("a"), make_answer("a", prompt_tokens=10, response_tokens=5)),
            (make_item("b"), make_answer("b", prompt_tokens=20, response_tokens=15)),
            (make_item("c", data_source="docmath"), make_answer("c", prompt_tokens=30, response_tokens=10)),
        ],
        rejects=Counter({RejectedAs.WRONG: 4, RejectedAs.DUPLICATE: 2}),
        refused_rows={"q.jsonl": 1},
    )
    assert (card.num_answers, card.num_kept, card.num_questions_kept) == (9, 3, 3)
    assert card.kept == {"musique": 2, "docmath": 1}
    assert set(card.rejects) == {str(reason) for reason in RejectedAs}
    assert card.total_tokens is not None
    assert (card.total_tokens.mean, card.total_tokens.median, card.total_tokens.maximum) == (30.0, 35.0, 40)
    text = card_markdown(card, config())
    assert "| wrong | 4 |" in text
    assert "Unreadable rows: q.jsonl: 1." in text
    hostile = replace(card, kept={"a|b\x1b[2J<script>\u202e": 1}, refused_rows={"*\x9b": 1})
    assert "| a\\|b\\x1b\\[2J\\<script\\>\\u202e | 1 |" in card_markdown(hostile, config())
    assert "Unreadable rows: \\*\\x9b: 1." in card_markdown(hostile, config())
    assert card_json(card, config())["config"]["generator"]["model"] == "owner/teacher"


def test_prompts_that_could_never_be_kept_are_refused_before_anything_is_asked():
    with pytest.raises(ValueError, match="exceeds max_total_tokens"):
        config(sampling=SamplingConfig(max_prompt_tokens=30))
