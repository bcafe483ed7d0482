"""The end of the thinking, for the tags of every family."""

import pytest

from reward.answer import extract_answer
from reward.thinking import FAMILIES, text_after_thinking, thinking_of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finished_thought_is_not_read_and_what_follows_is(family):
    opened, closed = FAMILIES[family]
    response = f"{opened}the answer is Rome{closed}Therefore, the answer is Paris"
    assert extract_answer(response) == "Paris"
    assert extract_answer(response, thinking_required=True) == "Paris"
    assert thinking_of(response) == "the answer is Rome"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unfinished_thought_gives_no_answer(family):
    opened, _ = FAMILIES[family]
    assert extract_answer(f"{opened}Therefore, the answer is Rome") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_thought_that_the_template_opened_ends_at_the_closing_tag(family):
    _, closed = FAMILIES[family]
    assert text_after_thinking(f"the answer is Rome{closed} Paris", required=True) == " Paris"


def test_tags_of_ones_own_are_known_beside_the_families():
    response = "<plan>the answer is Rome</plan>the answer is Paris"
    assert extract_answer(response, tags=("<plan>", "</plan>")) == "Paris"
    assert extract_answer("<plan>the answer is Rome", tags=("<plan>", "</plan>")) is None


def test_a_closing_tag_at_the_very_end_hides_no_answer():
    assert extract_answer("<think>so</think>the answer is Paris</think>") == "Paris"
    assert extract_answer("<think>so</think>the answer is Paris</think><|im_end|>\n") == "Paris"
    assert extract_answer("the answer is Paris</think>") == "Paris", "nothing was opened"


def test_a_thought_with_nothing_behind_it_gives_no_answer():
    assert extract_answer("<think>the answer is Rome</think>") is None
    assert extract_answer("the answer is Rome</think>", thinking_required=True) is None


def test_a_hundred_thousand_stray_tags_are_read_in_one_pass():
    assert extract_answer("<think></think>the answer is Paris" + "</think>" * 100_000) == "Paris"
