"""Prompts about another document than their own."""

from __future__ import annotations

import numpy as np
import pytest

from curriculum.dataset import Question, load_questions, task_about
from curriculum.layout import QuestionItem
from curriculum.prompts import with_document
from curriculum.rejects import RowError
from curriculum.task import Task


def question(**changes):
    values = {
        "item_id": "q",
        "data_source": "s",
        "context": "the mill is old",
        "question": "how old?",
        "answers": ("old",),
    }
    item = QuestionItem(**{**values, **changes})
    task = Task(
        task_id="q",
        data_source="s",
        question=item.question,
        answers=item.answers,
        prompt_ids=np.arange(6, dtype=np.int32),
        phase=1,
    )
    return Question(item=item, task=task)


def words(encoder, context, text):
    return encoder.encode(context, text).tolist()


def test_a_task_about_another_document_differs_in_its_prompt_alone(encoder):
    asked = question()
    task = task_about(asked, "the inn is very new indeed", encoder=encoder, max_tokens=20)

    assert task.prompt_ids.tolist() == words(encoder, "the inn is very new indeed", "how old?")
    assert (task.task_id, task.data_source, task.question, task.answers, task.phase) == (
        "q",
        "s",
        "how old?",
        ("old",),
        1,
    )


def test_without_a_document_the_question_is_left(encoder):
    assert task_about(question(), "", encoder=encoder, max_tokens=20).prompt_ids.tolist() == words(
        encoder, "", "how old?"
    )


def test_another_document_is_cut_to_fit(encoder):
    task = task_about(question(), " ".join(map(str, range(100))), encoder=encoder, max_tokens=12)

    assert task.prompt_ids.size <= 12


MESSAGES = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "<d>the mill is old</d> how old is the mill?"},
)


def test_the_document_of_a_kept_prompt_is_replaced_in_its_place():
    changed = with_document(question(messages=MESSAGES).item, "the inn is new")

    assert changed.messages == (MESSAGES[0], {"role": "user", "content": "<d>the inn is new</d> how old is the mill?"})
    assert MESSAGES[1]["content"].startswith("<d>the mill"), "the row stays as it is"


@pytest.mark.parametrize("context", ["", "another text"])
def test_a_kept_prompt_without_a_known_document_is_refused(context):
    with pytest.raises(RowError, match=r"no document is found in its prompt; .* data.markers.context"):
        with_document(question(messages=MESSAGES, context=context).item, "")


def test_questions_are_read_with_their_texts_and_accept_what_repetitions_accept(tmp_path, encoder):
    path = tmp_path / "questions.jsonl"
    row = '{{"id": "{}", "data_source": "s", "context": "a b c", "question": "q?", "answers": ["{}"]}}\n'
    path.write_text(row.format("first", "x") + row.format("second", "y"), encoding="utf-8")
    found = load_questions(str(path), encoder=encoder, phase_limits=(30,), over_long="drop")

    (read,) = found.records
    assert (read.item.item_id, read.item.context) == ("first", "a b c")
    assert read.item.answers == read.task.answers == ("x", "y")
    assert len(found.rejects) == 1
