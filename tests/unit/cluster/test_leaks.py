"""Held-out questions that leak from what a recipe trains on: left out, told, or refused before an actor starts."""

import json

import pytest

from cluster.recipe.load import load_recipe
from cluster.recipe.preparation import prepare
from curriculum.errors import UserError
from curriculum.synthetic import generate_demonstrations, generate_items

PHASES = "curriculum.phases=[{name: p, max_prompt_tokens: 400, end: {type: steps, steps: 1}}]"


def items(num_items, seed=0, prefix="row"):
    return generate_items(num_items=num_items, min_words=96, max_words=160, seed=seed, prefix=prefix)


def lessons(num_items, seed=1):
    return generate_demonstrations(
        num_items=num_items, min_words=96, max_words=160, seed=seed, quote_share=0.5, word_share=0.5, prefix="lesson"
    )


@pytest.fixture
def write(tmp_path):
    def _write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return _write


def prepared(train, evaluation, sft=None):
    warm_up = [f"data.sft={sft}"] if sft else ["data.sft=null", "sft.epochs=0"]
    data = [f"data.train={train}", f"data.evaluation={evaluation}", *warm_up]
    settings = [PHASES, "reward.judge={type: none}", "evaluation.control=[]"]
    settings += ["learner.warmup_steps=0", "sft.warmup_steps=0"]  # no notes of theirs
    return prepare(load_recipe("recipes/local.yaml", [*data, *settings]))


def test_held_out_questions_that_leak_are_left_out_by_kind_and_told_in_one_line(write):
    train, taught = items(3), lessons(2)
    held_out = [
        {**train[0], "id": "same", "context": train[0]["context"].replace(" ", "  ")},
        {**train[1], "id": "document", "question": "Question: zack owns what?"},
        {**taught[0], "id": "taught"},
        {**items(1, seed=5)[0], "id": "new", "question": "Question: nobody owns what?"},
        {**items(1, seed=6)[0], "id": "worded", "question": train[2]["question"]},
    ]
    found = prepared(write("t.jsonl", train), write("e.jsonl", held_out), sft=write("s.jsonl", taught))
    assert [task.task_id for task in found.heldout.tasks["p"]] == ["new", "worded"]
    rejects = found.rejects["data.evaluation"]
    assert [(reject.item_id, reject.reason) for reject in rejects] == [
        ("same", "leak"),
        ("document", "leak"),
        ("taught", "leak"),
    ]
    assert "same document as item 'row-000001' of data.train" in rejects[1].detail
    assert found.notes == (
        "data.evaluation: 3 of 5 questions are left out because they leak (data.train: same question and document 1, "
        "same document 1; data.sft: same question and document 1)",
        "data.evaluation: 1 of 5 questions are worded as one that is trained on, about another document; they are kept",
    )


def test_leaks_change_no_digest_that_a_resume_compares(write):
    train, held_out = items(3), items(3, seed=5)
    path = write("e.jsonl", held_out)
    alone = prepared(write("t.jsonl", train), path)
    leaking = prepared(write("u.jsonl", [*train, held_out[0] | {"id": "copy"}]), path)
    assert len(leaking.heldout.tasks["p"]) == 2
    assert leaking.inputs["data.evaluation"] == alone.inputs["data.evaluation"]


def test_demonstrations_about_documents_of_the_training_set_are_a_note(write):
    taught = lessons(4)
    train = [{key: value for key, value in row.items() if key != "response"} for row in taught[:2]]
    found = prepared(write("t.jsonl", train), write("e.jsonl", items(1, seed=9)), sft=write("s.jsonl", taught))
    assert found.notes[0].startswith(
        "data.sft: 2 of 4 demonstrations are about documents of data.train (same question and document 2)"
    )
    assert not found.rejects["data.sft"]


def test_a_demonstration_written_as_messages_is_known_by_its_document(write):
    held_out = items(1)
    messages = [
        {"role": "user", "content": f"Read this. {held_out[0]['context']} {held_out[0]['question']}"},
        {"role": "assistant", "content": "Therefore, the answer is paris"},
    ]
    train, sft = write("t.jsonl", items(1, seed=4)), write("s.jsonl", [{"messages": messages}])
    with pytest.raises(UserError, match=r"none of 1 rows is usable \(leak 1\).*long shared passage as item .* of data"):
        prepared(train, write("e.jsonl", held_out), sft=sft)


def test_a_held_out_set_of_which_nothing_is_left_is_refused(write):
    rows = items(2)
    with pytest.raises(UserError, match=r"data.evaluation=.*e.jsonl: none of 2 rows is usable \(leak 2\)"):
        prepared(write("t.jsonl", rows), write("e.jsonl", [row | {"id": f"b{row['id']}"} for row in rows]))


@pytest.mark.parametrize("key", ["train", "sft"])
def test_the_same_file_is_not_both_trained_on_and_held_out(write, key):
    path, other, third = write("a.jsonl", lessons(2)), write("b.jsonl", items(2)), write("c.jsonl", items(2, seed=3))
    again = f"{path.parent}/../{path.parent.name}/a.jsonl"
    arguments = (path, again) if key == "train" else (other, f"[{third}, {path}]", path)
    with pytest.raises(UserError, match=rf"data.evaluation=.*a.jsonl: data.{key} names it too") as refusal:
        prepared(*arguments)
    assert len(refusal.value.lines) == 1


def test_the_same_hub_id_is_not_both_trained_on_and_held_out():
    with pytest.raises(UserError, match=r"data\.evaluation=owner/questions: data\.train names it too"):
        prepared("owner/questions:train", "owner/questions")


def test_a_source_with_a_name_that_no_file_can_have_is_told_as_one_that_is_not_there(write):
    with pytest.raises(UserError, match=r"data\.train=.*neither a file here nor a data set|data\.train=.*long"):
        prepared("x" * 5000, write("e.jsonl", items(2)))


def test_the_demo_keeps_all_of_its_held_out_questions_and_tells_their_wording():
    found = prepared(*("{type: generated, items_per_length: 40, lengths: [[96, 160]]}",) * 2)
    assert len(found.heldout.tasks["p"]) == 40
    (note,) = found.notes
    assert "are worded as one that is trained on, about another document; they are kept" in note
