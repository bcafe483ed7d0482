"""Accepted answers that no response can match by rule: told at intake, for the judge or refused."""

import json

import pytest

from cluster.recipe.load import load_recipe
from cluster.recipe.preparation import prepare
from cluster.recipe.truths import is_payable, truths_by_source
from reward.config import RewardConfig
from reward.kind import AnswerKind

ENDPOINT = "reward.judge={type: openai, base_url: 'http://127.0.0.1:9/v1', model: m}"


@pytest.mark.parametrize(
    ("source", "answers", "payable"),
    [
        ("hotpotqa", ["Paris"], True),
        ("hotpotqa", ["the"], False),
        ("hotpotqa", ["on the ROCStories\n(Springs, 2016)"], True),
        ("docmath", ["42"], True),
        ("docmath", ["5 to 6"], False),
        ("docmath", ["12.5"], True),
        ("docmath", ["5 to 6", "5"], True),
        ("long_toc_choices", ["I"], True),
        ("long_toc_choices", ["(J) Paris"], True),
        ("long_toc_choices", ["Paris"], False),
    ],
)
def test_a_truth_is_payable_where_its_own_words_are_paid(source, answers, payable):
    assert is_payable(source, answers, RewardConfig()) is payable


def test_the_kind_of_a_source_may_be_set_by_the_recipe():
    assert not is_payable("sums", ["about five"], RewardConfig(kinds={"sums": AnswerKind.NUMERIC}))


@pytest.fixture
def recipe(tmp_path):
    """Overrides of the local recipe with three questions, one of which no number can answer."""
    answers = {"a": "42", "b": "5 to 6", "c": "1,000"}
    rows = [
        {
            "id": name,
            "data_source": "docmath_x",
            "context": f"It says {name}.",
            "question": "how many?",
            "answers": [text],
        }
        for name, text in answers.items()
    ]
    rows.append({**rows[0], "id": "a2", "answers": ["42.0", "43"]})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    phases = "curriculum.phases=[{name: p, max_prompt_tokens: 400, end: {type: steps, steps: 1}}]"
    nothing_else = ["data.sft=null", "sft.epochs=0", "data.evaluation=null", "evaluation.control=[]"]
    return [f"data.train={path}", *nothing_else, phases]


def prepared(*overrides):
    return prepare(load_recipe("recipes/local.yaml", ("learner.warmup_steps=0", *overrides)))


def test_with_a_judge_such_questions_are_kept_and_told(recipe):
    found = prepared(*recipe, ENDPOINT)
    assert [task.task_id for task in found.tasks] == ["a", "b", "c"]
    (note,) = found.notes
    assert note.startswith("data.train: 1 of 3 questions only the judge can reward")
    assert "'5 to 6' as numeric ('b')" in note


@pytest.mark.parametrize("override", ["reward.judge={type: none}", "data.unpayable=reject"])
def test_without_a_judge_or_by_the_recipes_word_they_are_refused_by_name(recipe, override):
    judge = [] if "none" in override else [ENDPOINT]
    found = prepared(*recipe, *judge, override)
    assert [task.task_id for task in found.tasks] == ["a", "c"]
    assert found.notes == ()
    reject = found.rejects["data.train"][0]
    assert (reject.item_id, reject.reason) == ("b", "unpayable")
    assert "'5 to 6'" in reject.detail


def test_another_accepted_answer_in_a_second_row_is_accepted_too(recipe):
    found = prepared(*recipe, ENDPOINT)
    assert found.tasks[0].answers == ("42", "42.0", "43")
    assert [(reject.item_id, reject.reason) for reject in found.rejects["data.train"]] == [("a2", "duplicate")]


def test_the_table_of_sources_names_kinds_and_examples(recipe):
    (source,) = truths_by_source(prepared(*recipe, ENDPOINT).tasks, RewardConfig())
    assert (source.data_source, source.kind, source.num_tasks) == ("docmath_x", AnswerKind.NUMERIC, 3)
    assert [task.task_id for task in source.unpayable] == ["b"]
