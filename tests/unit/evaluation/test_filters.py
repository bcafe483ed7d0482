import pytest

from evaluation.filters import foreign_share, has_format, is_near_duplicate, is_ungrounded, repetition
from evaluation.grounding import DocumentIndex, ground

GOOD = "<think>The text names Vienna.</think>\n\nTherefore, the answer is Vienna."


@pytest.mark.parametrize("response", [GOOD, GOOD.removeprefix("<think>"), "hm</think>\\boxed{4}"])
def test_a_closed_thought_with_an_answer_behind_it_has_the_format(response):
    assert has_format(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Therefore, the answer is Vienna.",
        "<think></think>Therefore, the answer is Vienna.",
        "<think>hm</think>Vienna it is",
        "<think>Therefore, the answer is Vienna.",
        GOOD + "</think>",
        "<think>" + GOOD,
        "Well. " + GOOD,
        GOOD + "<|im_end|>",
        GOOD.replace("text", "<｜Assistant｜>"),
    ],
)
def test_everything_else_does_not(response):
    assert not has_format(response)


def test_letters_of_a_script_that_nobody_used_are_foreign():
    assert foreign_share("Vienna 维也纳", "the capital is Vienna") == pytest.approx(3 / 9)
    assert foreign_share("Vienna", "首都是维也纳") == 1.0


def test_the_script_of_the_document_is_not_foreign():
    assert foreign_share("答案是 Vienna", "首都是维也纳 (Vienna)") == 0.0
    assert foreign_share("x² + 3 = 7, é", "the café") == 0.0


def test_one_letter_in_a_long_document_does_not_open_the_door():
    assert foreign_share("维也纳", "a" * 5_000 + "维") == 1.0


def test_a_text_without_letters_is_not_foreign():
    assert foreign_share("12 + 3", "text") == 0.0


def test_distinct_words_do_not_repeat_and_a_loop_does():
    assert repetition(" ".join(map(str, range(100)))) == 0.0
    assert repetition("so the answer must be four or five then " * 20) > 0.9
    assert repetition("\n".join(["Let me check the table again."] * 9 + [str(i) for i in range(500)])) == 1.0
    assert repetition("short") == 0.0


def test_one_run_in_two_repeats_where_a_text_is_said_twice():
    words = " ".join(map(str, range(200)))
    assert repetition(f"{words} {words}") == pytest.approx(0.5, abs=0.03)


def test_nearly_equal_responses_are_duplicates_and_different_ones_are_not():
    words = [f"w{i}" for i in range(100)]
    changed = [*words[:50], "other", *words[51:]]
    assert is_near_duplicate(" ".join(words), [" ".join(changed)])
    assert not is_near_duplicate(" ".join(words), [" ".join(reversed(words)), "w1 w2"])
    assert is_near_duplicate("yes", ["yes"])
    assert not is_near_duplicate("yes", [])


def test_only_responses_with_enough_passages_can_be_ungrounded():
    document = DocumentIndex("the old mill stood by the river")
    invented = " ".join(f'"the bridge {i} fell into water"' for i in range(3))
    assert is_ungrounded(ground(invented, document), min_precision=0.5)
    assert not is_ungrounded(ground(invented.partition(" 1")[0], document), min_precision=0.5)
    assert not is_ungrounded(ground("nothing", document), min_precision=0.5)
