import pytest

from benchmarks.hostile import SENTENCES, megabyte_of
from evaluation.behaviours import Behaviour, count_behaviours
from reward.thinking import thinking_of


def counts(text):
    found = count_behaviours(text)
    order = (Behaviour.GROUNDING, Behaviour.SUBGOAL_SETTING, Behaviour.BACKTRACKING, Behaviour.VERIFICATION)
    return tuple(found[behaviour] for behaviour in order)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("According to the second table, sales rose.", (1, 0, 0, 0)),
        ("The document also states that he left.", (1, 0, 0, 0)),
        ("In paragraph 3 he leaves.", (1, 0, 0, 0)),
        ("First, I need to find the year.", (0, 1, 0, 0)),
        ("Let me break this down into two parts.", (0, 1, 0, 0)),
        ("Next, we need the price.", (0, 1, 0, 0)),
        ("Wait, he was older.", (0, 0, 1, 0)),
        ("But wait, he was older.", (0, 0, 1, 0)),
        ("**Hold on.** He was older.", (0, 0, 1, 0)),
        ("Alternatively it may be Rome.", (0, 0, 1, 0)),
        ("That's not right.", (0, 0, 1, 0)),
        ("Let me double-check the sum.", (0, 0, 0, 1)),
        ("Does this match?", (0, 0, 0, 1)),
        ("Let’s verify it.", (0, 0, 0, 1)),
        ("He had to await the train and the checkered flag.", (0, 0, 0, 0)),
        ("They waited in the garden.", (0, 0, 0, 0)),
        ("根据文本，他离开了。", (1, 0, 0, 0)),
        ("文中明确提到他离开了。", (1, 0, 0, 0)),
        ("首先要看年份。", (0, 1, 0, 0)),
        ("我需要先找到年份。", (0, 1, 0, 0)),
        ("等等，我算错了。", (0, 0, 1, 0)),
        ("换个思路。", (0, 0, 1, 0)),
        ("再检查一遍结果。", (0, 0, 0, 1)),
        ("天气很好。", (0, 0, 0, 0)),
    ],
)
def test_a_behaviour_is_recognised_in_its_language(sentence, expected):
    assert counts(sentence) == expected


def test_a_behaviour_counts_once_in_a_sentence_and_again_in_the_next():
    assert counts("Wait, wait, hold on, hold on. Wait.") == (0, 0, 2, 0)


def test_languages_may_change_between_sentences():
    assert counts("等等，不对。Wait, no.\n再确认一下。") == (0, 0, 2, 1)


def test_an_empty_text_shows_nothing():
    assert count_behaviours("") == dict.fromkeys(Behaviour, 0)


@pytest.mark.parametrize(
    ("response", "thinking"),
    [
        ("<think>hm</think>Rome", "hm"),
        ("hm</think>Rome", "hm"),
        ("no tags", "no tags"),
        ("<think>never ends", "never ends"),
        ("a</think>b</think>c", "a</think>b"),
    ],
)
def test_the_thinking_is_what_stands_before_the_last_closing_tag(response, thinking):
    assert thinking_of(response) == thinking


@pytest.mark.timeout(60)  # time that grows with the square of the text would be hours
@pytest.mark.parametrize("word", SENTENCES)
def test_a_megabyte_is_counted_to_its_end(word):
    assert count_behaviours(megabyte_of(word)).keys() == set(Behaviour)
