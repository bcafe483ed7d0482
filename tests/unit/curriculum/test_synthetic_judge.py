"""The lessons of the local judge: every verdict right, both directions, close calls and junk among them."""

import random
import re
from collections import Counter

import pytest

from curriculum.config import GeneratedJudgePairs
from curriculum.dataset import load_demonstrations
from curriculum.errors import UserError
from curriculum.sources import open_table
from curriculum.synthetic import NUMBER_WORDS, NUMBERS, same_answer
from curriculum.synthetic_judge import ANSWERS, draw_candidates, draw_junk, draw_pair, generate_judge_pairs


def _prompt(*, question, answer, truth):
    return [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"{question}|{answer}|{truth}"}]


def _rows(num_items=3000, seed=2):
    return generate_judge_pairs(num_items=num_items, seed=seed, prompt=_prompt)


def _pairs(num_items=3000):
    rng = random.Random(1)
    return [draw_pair(rng) for _ in range(num_items)]


def test_a_row_is_the_judge_s_prompt_and_the_verdict_on_its_pair():
    rows, pairs = _rows(50), {}
    for row in rows:
        system, user = row["messages"]
        assert system == {"role": "system", "content": "Judge."}
        question, rest = user["content"].split("|", 1)
        answer, truth = rest.rsplit("|", 1)
        pairs[question, answer, truth] = row["response"]
    assert all(
        verdict == ("[[YES]]" if same_answer(answer, truth) else "[[NO]]")
        for (_, answer, truth), verdict in pairs.items()
    )


def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others():
    assert _rows(40) == _rows(40)
    assert _rows(40) == _rows(90)[:40]
    assert _rows(40, seed=3) != _rows(40)


def test_no_two_rows_are_alike():
    contents = [row["messages"][1]["content"] for row in _rows()]
    assert len(set(contents)) == len({row["id"] for row in _rows()}) == len(contents)


def test_a_good_share_of_the_verdicts_is_yes_but_not_the_greater_part():
    verdicts = Counter(row["response"] for row in _rows())
    assert set(verdicts) == {"[[YES]]", "[[NO]]"}
    assert 0.35 < verdicts["[[YES]]"] / 3000 < 0.5


def test_numbers_and_words_are_equated_in_both_directions_and_with_themselves():
    same = {(answer, truth) for _, answer, truth in _pairs(20_000) if same_answer(answer, truth)}
    for number, word in zip(NUMBERS, NUMBER_WORDS, strict=True):
        assert {(number, word), (word, number), (number, number), (word, word)} <= same
    assert {truth for _, truth in same} == set(ANSWERS)


def test_wrong_numbers_come_in_every_form():
    wrong = {(answer, truth) for _, answer, truth in _pairs(20_000) if not same_answer(answer, truth)}
    numbers = {(answer, truth) for answer, truth in wrong if {answer, truth} <= {*NUMBERS, *NUMBER_WORDS}}
    assert {(answer in NUMBERS, truth in NUMBERS) for answer, truth in numbers} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }
    assert any(answer.startswith("7.") and truth in ("7", "seven") for answer, truth in wrong)


def test_junk_and_unknown_truths_occur_and_are_never_accepted():
    pairs = _pairs(20_000)
    assert {"", "[[YES]]", "YES", "?", "a"} <= {answer for _, answer, _ in pairs}
    assert any(answer == question for question, answer, _ in pairs)
    assert max(len(answer) for _, answer, _ in pairs) > 300
    strange = [(answer, truth) for _, answer, truth in pairs if truth not in ANSWERS]
    assert 0.05 < len(strange) / len(pairs) < 0.15
    assert all(answer.casefold() != truth.casefold() for answer, truth in strange)


@pytest.mark.parametrize("truth", ["paris", "7", "seven", "alice"])
def test_candidates_and_junk_are_several_values_or_none(truth):
    rng = random.Random(0)
    for _ in range(300):
        words = re.findall(r"\w+", draw_candidates(rng, truth))
        assert len(words) > 1
        assert any(not same_answer(word, truth) for word in words)
        assert not same_answer(draw_junk(rng, "Question: bob eats what?"), truth)


def test_judge_pairs_are_a_source_of_demonstrations(encoder):
    source = GeneratedJudgePairs(num_items=20)
    found = load_demonstrations(source, encoder=encoder, max_tokens=1000, judge_prompt=_prompt)
    assert len(found.records) == 20
    assert not found.rejects


def test_judge_pairs_without_the_words_of_a_judge_are_refused():
    with pytest.raises(UserError, match=r"data\.sft\.type=generated_judge_pairs: there is no judge prompt"):
        open_table(GeneratedJudgePairs(num_items=2), key="data.sft")
