import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.config import DataConfig, Markers
from curriculum.errors import UserError
from curriculum.layout import (
    DEMONSTRATION_LAYOUTS,
    QUESTION_LAYOUTS,
    choose_layout,
    parse_conversation,
    parse_kept,
    parse_own,
    parse_own_demonstration,
    parse_published,
    question_layouts,
    split_prompt,
)
from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row

OWN = {"id": "a", "data_source": "musique", "context": "a text", "question": "who?", "answers": ["alice"]}
TEMPLATE = (
    "Please read the following text and answer the question below.\n\n<text>\n{}\n</text>\n\n{}\n\n"
    'Format your response as follows: "Therefore, the answer is (insert answer here)".'
)


def row(**values):
    return Row(number=1, values=values)


def published(content=None, **changes):
    content = TEMPLATE.format("a text", "who?") if content is None else content
    return row(
        **{
            "data_source": "docmath_v1",
            "prompt": [{"role": "user", "content": content}],
            "reward_model": {"style": "rule", "ground_truth": "Therefore, the answer is 7"},
            **changes,
        }
    )


def reason_of(parse, bad_row):
    with pytest.raises(RowError) as caught:
        parse(bad_row)
    return caught.value.reason


# ---- choice


def test_layouts_are_recognised_by_their_columns():
    assert choose_layout(QUESTION_LAYOUTS, list(OWN), name="x").parse is parse_own
    published_columns = ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert choose_layout(QUESTION_LAYOUTS, published_columns, name="x").parse is parse_published
    assert choose_layout(DEMONSTRATION_LAYOUTS, [*OWN, "response"], name="x").parse is parse_own_demonstration
    for columns in (["messages"], ["prompt", "response"], ["messages", "response"]):
        assert choose_layout(DEMONSTRATION_LAYOUTS, columns, name="x").parse is parse_conversation


def test_unrecognised_columns_name_the_needed_and_the_nearest():
    with pytest.raises(UserError, match="no recognised columns") as caught:
        choose_layout(QUESTION_LAYOUTS, ["Context", "questions", "answer", "text"], name="data.train=a.jsonl")
    assert str(caught.value) == (
        "data.train=a.jsonl: no recognised columns; found Context, questions, answer, text; "
        "need {data_source, context, question, answers|answer} or {prompt, data_source, reward_model}; "
        "rename Context -> context, questions -> question, or map them with data.columns of a recipe"
    )


# ---- our own schema


def test_our_own_row_is_read_as_it_is():
    item = parse_own(row(**OWN))
    assert (item.item_id, item.data_source, item.context, item.question) == ("a", "musique", "a text", "who?")
    assert item.answers == ("alice",)


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        ({"answers": ["a", "b"]}, ("a", "b")),
        ({"answers": ("a", "b", "a")}, ("a", "b")),
        ({"answers": np.array(["a", "b"], dtype=object)}, ("a", "b")),
        ({"answers": '["a", "b"]'}, ("a", "b")),
        ({"answers": "a"}, ("a",)),
        ({"answers": "[not json"}, ("[not json",)),
        ({"answers": [7, -0.5, "x"]}, ("7", "-0.5", "x")),
        ({"answers": np.array([7, 8])}, ("7", "8")),
        ({"answers": 7}, ("7",)),
        ({"answers": [10**400]}, ("1" + "0" * 400,)),
        ({"answers": ["", " ", "a"]}, ("a",)),
        ({"answers": [], "answer": "a"}, ("a",)),
        ({"answers": None, "answer": "a"}, ("a",)),
        ({"answers": None, "answer": '["a", "b"]'}, ("a", "b")),
        ({"answers": None, "answer": "[0, 1]"}, ("[0, 1]",)),
        ({"answers": ['["a", "b"]', "c"]}, ("a", "b", "c")),
        ({"answers": ["a", None]}, ("a",)),
        ({"answers": ["b"], "answer": "a"}, ("b",)),
    ],
)
def test_answers_may_be_a_list_a_json_list_an_array_or_one_value(columns, answers):
    assert parse_own(row(**{**OWN, **columns})).answers == answers


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"context": None}, RejectReason.MISSING_COLUMN),
        ({"data_source": None}, RejectReason.MISSING_COLUMN),
        ({"answers": None}, RejectReason.MISSING_COLUMN),
        ({"context": 7}, RejectReason.WRONG_TYPE),
        ({"question": ["who?"]}, RejectReason.WRONG_TYPE),
        ({"answers": [True]}, RejectReason.WRONG_TYPE),
        ({"answers": [None]}, RejectReason.EMPTY),
        ({"answers": [float("nan")]}, RejectReason.WRONG_TYPE),
        ({"answers": {"a": 1}}, RejectReason.WRONG_TYPE),
        ({"id": 1.5}, RejectReason.WRONG_TYPE),
        ({"id": True}, RejectReason.WRONG_TYPE),
        ({"context": ""}, RejectReason.EMPTY),
        ({"question": " \n"}, RejectReason.EMPTY),
        ({"answers": []}, RejectReason.EMPTY),
        ({"answers": [""]}, RejectReason.EMPTY),
        ({"context": "half a pair \ud83d"}, RejectReason.NOT_UTF8),
        ({"answers": ["\udc00"]}, RejectReason.NOT_UTF8),
        ({"id": "\udc00"}, RejectReason.NOT_UTF8),
    ],
)
def test_a_bad_cell_names_its_reason(columns, reason):
    assert reason_of(parse_own, row(**{**OWN, **columns})) == reason


def test_an_id_that_was_read_as_a_float_is_an_integer():
    assert parse_own(row(**{**OWN, "id": 12.0})).item_id == "12"


def test_a_missing_id_is_derived_from_the_content_alone():
    first = parse_own(row(**{**OWN, "id": None}))
    second = parse_own(row(**{**OWN, "id": " ", "answers": ["bob"]}))
    other = parse_own(row(**{**OWN, "id": None, "question": "when?"}))
    assert first.item_id == second.item_id != other.item_id
    assert len(first.item_id) == 16
    assert int(first.item_id, 16) >= 0


def test_an_integer_id_becomes_text():
    assert parse_own(row(**{**OWN, "id": 0})).item_id == "0"


# ---- published layout


def test_a_published_row_gives_up_its_document_question_and_truth():
    item = parse_published(published())
    assert (item.context, item.question) == ("a text", "who?")
    assert item.answers == ("Therefore, the answer is 7",)
    assert item.data_source == "docmath_v1"


@given(st.text(min_size=1), st.text(min_size=1))
def test_the_filled_template_is_taken_apart_exactly(context, question):
    # a question that repeats the template's own markers is the one thing that cannot be told apart
    if not context.strip() or not question.strip() or "text>" in question or "Format your" in question:
        return
    assert split_prompt(TEMPLATE.format(context, question)) == (context, question.strip())


def test_a_document_that_contains_the_closing_tag_stays_whole():
    assert split_prompt(TEMPLATE.format("a </text> b <text> c", "who?")) == ("a </text> b <text> c", "who?")


@pytest.mark.parametrize("marker", ["<text>", "</text>", "Format your response as follows"])
def test_a_prompt_without_a_marker_of_the_template_is_refused(marker):
    with pytest.raises(RowError, match="the prompt has no") as caught:
        split_prompt(TEMPLATE.format("a text", "who?").replace(marker, ""))
    assert marker in caught.value.detail


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"content": TEMPLATE.format(" ", "who?")}, RejectReason.EMPTY),
        ({"content": TEMPLATE.format("a", " ")}, RejectReason.EMPTY),
        ({"prompt": []}, RejectReason.EMPTY),
        ({"prompt": [{"role": "system", "content": "x"}]}, RejectReason.BAD_PROMPT),
        ({"prompt": [{"role": "user"}]}, RejectReason.WRONG_TYPE),
        ({"prompt": ["who?"]}, RejectReason.WRONG_TYPE),
        ({"reward_model": {"style": "rule"}}, RejectReason.MISSING_COLUMN),
        ({"reward_model": None}, RejectReason.MISSING_COLUMN),
        ({"reward_model": {"ground_truth": ""}}, RejectReason.EMPTY),
    ],
)
def test_a_bad_published_row_names_its_reason(changes, reason):
    assert reason_of(parse_published, published(**changes)) == reason


def test_published_columns_may_be_stored_as_json():
    prompt = json.dumps([{"role": "user", "content": TEMPLATE.format("a text", "who?")}])
    item = parse_published(published(reward_model='{"ground_truth": "7"}'))
    assert item.answers == ("7",)
    assert parse_published(row(data_source="x", prompt=prompt, reward_model={"ground_truth": "7"})).question == "who?"


# ---- demonstrations


def test_a_triplet_keeps_document_question_and_response():
    item = parse_own_demonstration(row(context="a text", question="who?", response="<think> </think> alice"))
    assert (item.context, item.question, item.messages) == ("a text", "who?", ())
    assert item.response == "<think> </think> alice"


USER, ASSISTANT = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "alice"}


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [USER], "response": "alice"},
        {"prompt": [USER], "response": "alice"},
        {"prompt": "who?", "response": "alice"},
    ],
)
def test_a_conversation_is_a_prompt_and_its_response(columns):
    item = parse_conversation(row(**columns))
    assert item.messages == (USER,)
    assert item.response == "alice"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"messages": [USER]}, RejectReason.BAD_PROMPT),
        ({"messages": [ASSISTANT]}, RejectReason.EMPTY),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, RejectReason.EMPTY),
        ({"prompt": "who?", "response": ""}, RejectReason.EMPTY),
        ({"prompt": "who?", "response": 7}, RejectReason.WRONG_TYPE),
        ({"response": "alice"}, RejectReason.MISSING_COLUMN),
    ],
)
def test_a_bad_conversation_names_its_reason(columns, reason):
    assert reason_of(parse_conversation, row(**columns)) == reason


# ---- prompts that are kept

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Question: who?\n\nDocument:\n<doc>\n a text </doc> and more \n</doc>\nGo on."},
]
MARKERS = Markers(context=("<doc>", "</doc>"), question=("Question:", "\n"))


def kept(messages=CHAT, **changes):
    return row(**{"data_source": "musique", "prompt": messages, "answers": ["alice"], **changes})


def test_a_recipe_that_keeps_prompts_needs_a_prompt_a_source_and_answers():
    assert question_layouts(DataConfig()) == QUESTION_LAYOUTS
    layouts = question_layouts(DataConfig(prompt="keep"))
    for columns in (["messages", "data_source", "answer"], ["prompt", "data_source", "reward_model", "context"]):
        choose_layout(layouts, columns, name="x")
    with pytest.raises(UserError, match=r"need \{prompt\|messages, data_source, answers\|answer\|reward_model\}"):
        choose_layout(layouts, list(OWN), name="x")


def test_prompts_of_another_form_lead_to_the_key_that_keeps_them():
    with pytest.raises(UserError, match=r"a recipe takes prompts as they are with data\.prompt=keep$"):
        choose_layout(QUESTION_LAYOUTS, ["messages", "data_source", "answers"], name="x")


def test_a_kept_prompt_is_every_message_as_it_is_and_markers_find_document_and_question():
    item = parse_kept(kept(), MARKERS)
    assert list(item.messages) == CHAT
    assert (item.context, item.question, item.answers) == ("a text </doc> and more", "who?", ("alice",))


def test_without_markers_columns_hold_document_and_question_or_nothing_does():
    item = parse_kept(kept(context="a text", question=" who? "), Markers())
    assert (item.context, item.question) == ("a text", "who?")
    item = parse_kept(kept("just a text", context=None), Markers())
    assert (item.context, item.question) == ("", "")
    assert item.messages == ({"role": "user", "content": "just a text"},)


def test_a_document_may_lie_in_an_earlier_message_and_a_question_reach_to_the_end():
    messages = [
        {"role": "system", "content": "<doc>Q: no</doc>"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Q: who?\nnow"},
    ]
    item = parse_kept(kept(json.dumps(messages)), Markers(context=("<doc>", "</doc>"), question=("Q: ", "")))
    assert (item.context, item.question) == ("Q: no", "who?\nnow")
    assert [message["role"] for message in item.messages] == ["system", "user", "assistant", "user"]


def test_the_text_of_a_question_inside_the_document_is_not_the_question():
    messages = "<doc>\nQuestion: fake\n</doc>\nQuestion: real\n"
    assert parse_kept(kept(messages), MARKERS).question == "real"


def test_answers_of_kept_prompts_come_from_the_reward_model_where_there_are_no_others():
    item = parse_kept(kept(answers=None, reward_model={"ground_truth": 7}), Markers())
    assert item.answers == ("7",)


def test_different_chats_are_different_questions_even_without_parts():
    first, second = (parse_kept(kept(text), Markers()) for text in ("one", "two"))
    assert first.content != second.content
    assert first.item_id != second.item_id


@pytest.mark.parametrize(
    ("bad_row", "markers", "reason"),
    [
        (kept([*CHAT, {"role": "assistant", "content": "x"}]), Markers(), RejectReason.BAD_PROMPT),
        (kept(" "), Markers(), RejectReason.EMPTY),
        (kept([]), Markers(), RejectReason.EMPTY),
        (kept("no document. Question: x\n"), MARKERS, RejectReason.BAD_PROMPT),
        (kept("</doc> before <doc> Question: x\n"), MARKERS, RejectReason.BAD_PROMPT),
        (kept("<doc> </doc> Question: x\n"), MARKERS, RejectReason.EMPTY),
        (kept("<doc>x</doc> Question: x"), MARKERS, RejectReason.BAD_PROMPT),
        (kept("<doc>x</doc> Question: \n"), MARKERS, RejectReason.EMPTY),
        (kept(answers=None), MARKERS, RejectReason.MISSING_COLUMN),
        (kept(context=3), Markers(), RejectReason.WRONG_TYPE),
    ],
)
def test_kept_prompts_that_do_not_fit_are_refused_with_a_reason(bad_row, markers, reason):
    assert reason_of(lambda row: parse_kept(row, markers), bad_row) == reason


@given(st.text(), st.text())
def test_what_markers_find_is_a_part_of_the_prompt(content, marker):
    markers = Markers(context=(marker, marker), question=(marker, ""))
    try:
        item = parse_kept(kept("x" + content), markers)
    except RowError:
        return
    assert item.context in "x" + content
    assert item.question in "x" + content
