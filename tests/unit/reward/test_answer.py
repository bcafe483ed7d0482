import pytest

from reward.answer import accepted_answers, extract_answer, last_boxed
from reward.wrapping import MAX_ANSWER_CHARS, clean_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think> emma visits tokyo . </think> Therefore, the answer is tokyo", "tokyo"),
        ("<think>\nSo.\n</think>\n\nThe ANSWER is **Paris**.", "Paris"),
        ("**The answer is** Paris", "Paris"),
        ("The correct answer is (B)", "(B)"),
        ("The final answer is 5", "5"),
        ("the answer is “Paris”.", "Paris"),
        ("the answer is\xa0Paris", "Paris"),
        ("the answer is Paris<|im_end|>", "Paris"),
        ("the answer is Paris<｜end▁of▁sentence｜>", "Paris"),
        ("the answer is ＦＴＸ", "FTX"),
        ("the answer is −5", "-5"),
        ("因此，答案是北京。", "北京"),
        ("正确答案为：**北京**", "北京"),
    ],
)
def test_the_answer_is_what_follows_the_announcement(response, answer):
    assert extract_answer(response) == answer


def test_the_last_announcement_wins():
    assert extract_answer("The answer is 4. Wait, no: the answer is 5") == "5"


def test_an_answer_ends_at_a_blank_line():
    assert extract_answer("The answer is:\n\nParis\n\nThis follows from the second document.") == "Paris"


def test_a_list_below_the_announcement_is_one_answer():
    assert extract_answer("the answer is\n- Paris\n- London\n\nBoth are named.") == "Paris, London"


@pytest.mark.parametrize(
    "response",
    [
        "It is \\boxed{Paris}",
        "First \\boxed{Rome}, no: \\boxed{\\text{Paris}}.",
        "The answer is as follows:\n\n$$\\boxed{Paris}$$",
        "The answer is $\\boxed{Paris}$.",
    ],
)
def test_a_box_is_an_answer(response):
    assert extract_answer(response) == "Paris"


def test_braces_inside_a_box_are_balanced():
    assert last_boxed("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{\\frac{1}{2}") is None


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Paris",
        "The answer isn't clear",
        "the answer is ",
        "the answer is ....",
        "the answer is (insert answer here)",
        "<think> the answer is Paris",
        "<think>the answer is Paris</think> I believe it is Rome.",
    ],
)
def test_a_response_without_an_announced_answer_has_none(response):
    assert extract_answer(response) is None


def test_thinking_that_reopens_is_not_searched():
    assert extract_answer("</think> the answer is Rome <think> or rather the answer is Paris") == "Rome"


def test_a_missing_thinking_tag_is_an_unfinished_thought_where_thinking_is_required():
    response = "Let me see. Perhaps the answer is Paris, but"
    assert extract_answer(response) == "Paris, but"
    assert extract_answer(response, thinking_required=True) is None


def test_names_with_underscores_and_powers_survive_the_markdown():
    assert clean_answer("__init__.py") == "__init__.py"
    assert clean_answer("10**3") == "10**3"
    assert clean_answer("**10**") == "10"


def test_a_long_answer_is_cut():
    assert len(extract_answer("the answer is " + "9" * 1_000_000) or "") == MAX_ANSWER_CHARS


@pytest.mark.parametrize(
    ("ground_truth", "answers"),
    [
        ("Paris", ("Paris",)),
        ("Netflix, Inc.", ("Netflix, Inc.",)),
        ("Therefore, the answer is Paris.", ("Paris",)),
        ("The correct answer is (B)", ("(B)",)),
        ("因此，答案是北京。", ("北京",)),
        (["Pink", "pink.", "Pink"], ("Pink", "pink.")),
        (["Therefore, the answer is 12", "twelve"], ("12", "twelve")),
        ("He said that the answer is unknown", ("He said that the answer is unknown",)),
        (37.5, ("37.5",)),
        (True, ("True",)),
    ],
)
def test_a_ground_truth_is_bare_or_a_list_or_a_sentence(ground_truth, answers):
    assert accepted_answers(ground_truth) == answers


@pytest.mark.parametrize("ground_truth", ["", " ", [], [""], None, {"answer": "x"}, b"x", [None], float("nan")])
def test_a_ground_truth_without_an_answer_is_refused(ground_truth):
    with pytest.raises(ValueError, match="ground_truth"):
        accepted_answers(ground_truth)


def test_a_sentence_with_nothing_behind_it_is_refused():
    with pytest.raises(ValueError, match="empty"):
        accepted_answers("Therefore, the answer is .")
