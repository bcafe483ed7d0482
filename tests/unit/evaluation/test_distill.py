from collections import Counter

import pytest

from curriculum.dataset import load_demonstrations
from evaluation.config import DistillConfig, SamplingConfig, VllmGenerator
from evaluation.data_card import card_json, card_markdown, make_card
from evaluation.distill import Verified, select, write_demonstrations
from evaluation.filters import RejectedAs
from evaluation.record import Outcome, ScoredAnswer

GOOD = "<think>The text names Vienna.</think>\n\nTherefore, the answer is Vienna."


def config(**values):
    defaults = {"min_response_tokens": 2, "max_total_tokens": 20, "sampling": SamplingConfig(max_prompt_tokens=15)}
    return DistillConfig(generator=VllmGenerator(model="owner/teacher"), sources=("q.jsonl",), **{**defaults, **values})


@pytest.fixture
def verified(make_answer):
    def make(accuracy=1.0, item_id="a", sample=0, text=GOOD, **values):
        answer = make_answer(item_id, sample, text=text, **values)
        score = ScoredAnswer(
            benchmark="musique",
            item_id=item_id,
            sample=sample,
            scorer="s",
            response="r",
            accuracy=accuracy,
            answer="x",
            rule=0.0,
            judge=None,
            reason="",
        )
        return Verified(answer=answer, score=score)

    return make


def reasons(make_item, answers, **settings):
    selection = select([make_item("a")], answers, config(**settings))
    assert len(selection.kept) + selection.rejects.total() == len(answers)
    return [answer.sample for _, answer in selection.kept], dict(selection.rejects)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"accuracy": 0.0}, RejectedAs.WRONG),
        ({"accuracy": None}, RejectedAs.UNKNOWN),
        ({"outcome": Outcome.TRUNCATED}, RejectedAs.TRUNCATED),
        ({"outcome": Outcome.FAILED, "error": "x", "accuracy": 0.0}, RejectedAs.FAILED),
        ({"text": "the answer is Vienna"}, RejectedAs.NO_FORMAT),
        ({"response_tokens": 1}, RejectedAs.TOO_SHORT),
        ({"response_tokens": 11}, RejectedAs.TOO_LONG),
        ({"text": GOOD.replace("The", "这是一个非常长的中文句子")}, RejectedAs.MIXED_LANGUAGE),
        ({"text": GOOD.replace("The", "and so on and so on it goes " * 9)}, RejectedAs.REPETITIVE),
        ({"text": GOOD.replace("The", '"a b c d e" "f g h i j" "k l m n o" The')}, RejectedAs.UNGROUNDED),
    ],
)
def test_each_fault_has_its_reason(make_item, verified, values, reason):
    assert reasons(make_item, [verified(**values)]) == ([], {reason: 1})


def test_the_shortest_good_answer_of_a_question_is_kept(make_item, verified):
    answers = [verified(sample=i, response_tokens=tokens) for i, tokens in enumerate([6, 4, 5])]
    assert reasons(make_item, answers) == ([1], {RejectedAs.SURPLUS: 2})


def test_near_duplicates_are_left_out_where_several_are_kept(make_item, verified):
    other = "<think>Austria is ruled from its biggest city on the Danube.</think>The answer is Vienna"
    answers = [verified(sample=0), verified(sample=1), verified(sample=2, text=other)]
    assert reasons(make_item, answers, max_kept=3) == ([0, 2], {RejectedAs.DUPLICATE: 1})


def test_the_demonstrations_are_read_by_the_warm_up(tmp_path, make_item, verified, encoder):
    item = make_item("a")
    write_demonstrations([(item, verified().answer)], tmp_path / "sft.parquet")
    encoder.encode_response = lambda text: encoder.encode(text, "")
    found = load_demonstrations(str(tmp_path / "sft.parquet"), encoder=encoder, max_tokens=100)
    (demonstration,) = found.demonstrations
    assert demonstration.demonstration_id == "a-0"
    assert len(demonstration.response_ids) == len(GOOD.split())


def test_a_set_without_demonstrations_is_still_a_parquet_file(tmp_path):
    import pyarrow.parquet as pq

    write_demonstrations([], tmp_path / "sft.parquet")
    assert pq.read_table(tmp_path / "sft.parquet").column_names[-3:] == ["question", "answers", "response"]


def test_the_card_accounts_for_every_answer_and_measures_lengths():
    card = make_card(
        num_questions=3,
        num_over_long=1,
        kept=[("musique", "a", 10, 5), ("musique", "b", 20, 15), ("docmath", "c", 30, 10)],
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
    assert card_json(card, config())["config"]["generator"]["model"] == "owner/teacher"


def test_prompts_that_could_never_be_kept_are_refused_before_anything_is_asked():
    with pytest.raises(ValueError, match="exceeds max_total_tokens"):
        config(sampling=SamplingConfig(max_prompt_tokens=30))
