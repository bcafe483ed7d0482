"""The generated task: reproducible, self-consistent, and never wrong in a demonstration."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from curriculum.errors import UserError
from curriculum.synthetic import (
    NUMBERS,
    VALUES,
    WORD_OF_NUMBER,
    generate_demonstrations,
    generate_items,
    same_answer,
    vocabulary,
)

ROOT = Path(__file__).resolve().parents[3]
FACT = re.compile(r"(\w+) (visits|eats|owns|follows) (\w+)\.")


def _items(num_items=60, **changes):
    return generate_items(
        **{"min_words": 64, "max_words": 128, "seed": 1, "prefix": "t", **changes}, num_items=num_items
    )


def _demonstrations(num_items=200, **changes):
    settings = {"min_words": 48, "max_words": 96, "seed": 5, "quote_share": 0.5, "word_share": 0.5, "prefix": "d"}
    return generate_demonstrations(**{**settings, **changes}, num_items=num_items)


def _solve(context, question):
    facts = {(name, relation): value for name, relation, value in FACT.findall(context)}
    words = question.removeprefix("Question: ").removesuffix(" what?").split()
    name = facts[(words[0], "follows")] if len(words) == 4 else words[0]
    return facts[(name, words[-1])]


def _num_tokens(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def test_the_same_seed_gives_the_same_items_and_another_seed_gives_others():
    assert _items() == _items()
    assert _items(seed=2) != _items()
    assert _items(prefix="u")[0]["context"] != _items()[0]["context"]


def test_an_item_does_not_depend_on_how_many_are_asked_for():
    assert _items(5) == _items(50)[:5]


def test_items_do_not_depend_on_the_hash_seed_of_the_process():
    program = (
        "import json; from curriculum.synthetic import *; from curriculum.synthetic_judge import *;"
        "a = generate_items(num_items=9, min_words=64, max_words=128, seed=1, prefix='t');"
        "b = generate_judge_pairs(num_items=9, seed=1, prompt=lambda **pair: [pair]);"
        "print(json.dumps(a + b))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])[:9] == _items(9)


def test_every_document_states_a_name_and_relation_at_most_once():
    for row in _items(max_words=900):
        keys = Counter((name, relation) for name, relation, _ in FACT.findall(row["context"]))
        assert max(keys.values()) == 1


def test_the_document_answers_its_question():
    for row in _items(200):
        assert row["answers"] == [_solve(row["context"], row["question"])]


def test_both_kinds_of_question_occur_and_are_named_in_the_data_source():
    for row in _items(200):
        assert (row["data_source"] == "local_hop2") == (" follows who " in row["question"])
    assert set(Counter(row["data_source"] for row in _items(200))) == {"local_hop1", "local_hop2"}


@pytest.mark.parametrize(("low", "high"), [(16, 16), (64, 128), (600, 640), (1500, 1500)])
def test_a_document_has_the_drawn_length_up_to_three_words(low, high):
    for row in _items(40, min_words=low, max_words=high):
        assert low - 3 <= _num_tokens(row["context"]) <= high


def test_documents_are_made_of_the_declared_vocabulary():
    words = {word for row in _items() for word in re.findall(r"\w+", row["context"] + " " + row["question"])}
    assert words - {"Notes", "Question"} <= set(vocabulary())


def test_every_demonstration_is_correct_and_its_quotes_are_in_the_document():
    for row in _demonstrations():
        thinking, answer = re.fullmatch(
            r"<think>((?: \w+ \w+ \w+\.)*)</think> Therefore, the answer is (\w+)", row["response"]
        ).groups()
        assert same_answer(answer, row["answers"][0])
        assert all(" ".join(fact) + "." in row["context"] for fact in FACT.findall(thinking))
        if thinking:
            assert FACT.findall(thinking)[-1][2] == row["answers"][0]
            assert len(FACT.findall(thinking)) == int(row["data_source"][-1])


def test_the_shares_of_quotes_and_number_words_are_respected():
    rows = _demonstrations(1000, quote_share=0.25, word_share=0.5)
    assert 0.2 < sum("<think></think>" not in row["response"] for row in rows) / 1000 < 0.3
    numeric = [row for row in rows if row["answers"][0] in NUMBERS]
    in_words = sum(row["response"].endswith(f" {WORD_OF_NUMBER[row['answers'][0]]}") for row in numeric)
    assert 0.4 < in_words / len(numeric) < 0.6
    assert not any(row["response"].endswith(tuple(WORD_OF_NUMBER.values())) for row in _demonstrations(word_share=0.0))


def test_held_out_items_share_no_document_with_the_training_items():
    training = {row["context"] for row in _items(500, prefix="train-0")}
    assert not training & {row["context"] for row in _items(500, prefix="evaluation-0")}
    assert not training & {row["context"] for row in _items(500, prefix="train-0", seed=2)}


def test_value_classes_are_disjoint_so_that_an_answer_tells_its_relation():
    values = [value for values in VALUES.values() for value in values]
    assert len(values) == len(set(values))


def test_too_short_a_document_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"min_words=8.*change the length range"):
        _items(min_words=8)
    with pytest.raises(UserError, match="min_words=90, max_words=80"):
        _items(min_words=90, max_words=80)


def test_a_number_equals_its_word_and_nothing_else():
    assert same_answer("7", "seven")
    assert same_answer("twenty", "20")
    assert same_answer("paris", "paris")
    assert not same_answer("7", "seventeen")
    assert not same_answer("", "7")
