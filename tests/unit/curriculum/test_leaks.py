"""Overlap between sets of questions: what counts as a leak, in hand-made texts and in random ones."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.layout import DemonstrationItem, QuestionItem
from curriculum.leaks import KnownQuestions, Overlap, traces_of, traces_of_item

MILL = "The old mill by the river was sold in 1843 to the town, which kept it for a century and then gave it away."
WORDS = [f"{first}{second}" for first in ("ba", "co", "di", "fu", "ge") for second in ("lan", "mer", "nor", "pis", "t")]


def prose(num_words, seed=0):
    """Words in random order; runs of 16 of them do not occur twice."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def han(num_characters, seed=0):
    draw = random.Random(seed)
    return "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(num_characters))


def overlap(known, context, question="What is asked?"):
    """The overlap of a question with a set of (document, question) pairs."""
    questions = KnownQuestions()
    for number, (document, other) in enumerate(known):
        questions.add(traces_of(document, other), f"row-{number}")
    match = questions.match(traces_of(context, question))
    return None if match is None else match.overlap


def test_the_same_question_about_the_same_document_leaks():
    assert overlap([(MILL, "When was it sold?")], MILL, "When was it sold?") is Overlap.QUESTION_AND_DOCUMENT


def test_another_question_about_the_same_document_leaks():
    assert overlap([(MILL, "When was it sold?")], MILL, "To whom?") is Overlap.DOCUMENT


@pytest.mark.parametrize(
    "changed",
    [
        MILL.upper(),
        f"\n\t {MILL.replace(' ', '  ')}\r\n",
        MILL.replace(",", " —").replace(".", "!"),
        MILL.replace("river", "ｒｉｖｅｒ"),  # full-width letters
    ],
    ids=["case", "white space", "punctuation", "compatibility forms"],
)
def test_case_white_space_punctuation_and_forms_of_letters_make_no_other_document(changed):
    assert overlap([(MILL, "When?")], changed, "To whom?") is Overlap.DOCUMENT
    assert overlap([(prose(50), MILL)], prose(50), changed) is Overlap.QUESTION_AND_DOCUMENT


def test_a_document_inside_of_a_longer_one_leaks_either_way():
    short, long = prose(300), f"{prose(9_000, 1)} {prose(300)} {prose(9_000, 2)}"
    assert overlap([(long, "q")], short) is Overlap.PASSAGE
    assert overlap([(short, "q")], long) is Overlap.PASSAGE


def test_a_document_that_was_truncated_or_lost_its_middle_leaks():
    words = prose(10_000).split()
    head, without_middle = " ".join(words[:3_000]), " ".join(words[:2_000] + words[-2_000:])
    for cut in (head, without_middle):
        assert overlap([(" ".join(words), "q")], cut) is Overlap.PASSAGE
        assert overlap([(cut, "q")], " ".join(words)) is Overlap.PASSAGE


def test_the_same_question_about_a_truncated_document_is_the_same_question():
    assert overlap([(prose(4_000), "Who?")], prose(2_000), "Who?") is Overlap.QUESTION_AND_DOCUMENT


def test_boilerplate_alone_is_no_leak():
    """As the certifications of two filings of 10,000 words: 1,200 words in common, 470 of them in a row."""
    form = prose(470, 9), prose(400, 10), prose(330, 11)
    first, second = (f"{form[0]} {prose(5_000, seed)} {form[1]} {prose(5_000, seed + 1)} {form[2]}" for seed in (1, 3))
    assert overlap([(first, "q")], second) is None


def test_a_passage_of_a_hundred_words_counts_where_it_is_a_fifth_of_the_shorter_document():
    passage = prose(130, 5)
    assert overlap([(f"{passage} {prose(2_000, 1)}", "q")], f"{passage} {prose(300, 2)}") is Overlap.PASSAGE
    assert overlap([(f"{passage} {prose(2_000, 1)}", "q")], f"{passage} {prose(900, 2)}") is None
    assert overlap([(f"{prose(60, 5)} {prose(200, 1)}", "q")], f"{prose(60, 5)} {prose(140, 2)}") is None


def test_an_equal_question_about_another_document_is_no_leak():
    found = overlap([(prose(200), "Who is the tallest?")], prose(200, 1), "who is the tallest")
    assert found is Overlap.QUESTION
    assert not found.is_leak
    assert all(other.is_leak for other in Overlap if other is not Overlap.QUESTION)


def test_an_equal_question_without_a_document_leaks():
    assert overlap([(prose(200), "How many primes are below 90?")], "", "How many primes are below 90?").is_leak
    assert overlap([("", "Name a prime.")], "", "Name another prime.") is None


def test_what_has_no_words_matches_nothing():
    assert overlap([("...", "?"), ("", "")], "—", "!") is None
    assert overlap([], MILL, "When?") is None


def test_chinese_has_words_without_spaces():
    document = han(2_000)
    spaced = "，".join(document[start : start + 7] for start in range(0, 2_000, 7))
    assert overlap([(document, "何时？")], spaced, "谁") is Overlap.DOCUMENT
    assert overlap([(document, "何时？")], document[700:1_100], "谁") is Overlap.PASSAGE
    assert overlap([(document, "何时？")], han(2_000, 1), "何时") is Overlap.QUESTION


def test_the_item_of_the_set_is_named():
    known = KnownQuestions()
    known.add(traces_of(prose(500, 1), "a"), "first")
    known.add(traces_of(prose(500, 2), "b"), "second")
    known.add(traces_of(prose(500, 2), "c"), "third")
    match = known.match(traces_of(prose(500, 2)[:1_500], "d"))
    assert (match.overlap, match.item_id) == (Overlap.PASSAGE, "second")
    known.add(traces_of(prose(500, 4), "e"), "fourth")  # after the set was asked
    assert known.match(traces_of(prose(500, 4), "d")).item_id == "fourth"


def test_long_tables_of_one_repeated_number_have_one_run_in_common():
    zeros = "0 " * 3_000
    assert overlap([(f"{prose(300, 1)} {zeros}", "q")], f"{prose(300)} {zeros}") is None


def lesson(prompt):
    messages = ({"role": "user", "content": prompt},)
    return DemonstrationItem(item_id="lesson", context=None, question=None, messages=messages, response="1843")


def test_a_conversation_with_the_prompt_of_the_paper_is_read_as_document_and_question():
    prompt = f"Read.\n\n<text>\n{MILL}\n</text>\n\nWhen was it sold?\n\nFormat your response as follows: ..."
    known = KnownQuestions()
    known.add(traces_of_item(lesson(prompt)), "lesson")
    assert known.match(traces_of(MILL, "When was it sold?")).overlap is Overlap.QUESTION_AND_DOCUMENT


def test_a_document_inside_of_another_prompt_is_found_and_a_shared_template_is_no_leak():
    template = prose(200, 7)
    known = KnownQuestions()
    known.add(traces_of_item(lesson(f"{template} {prose(300)} Who?")), "lesson")
    assert known.match(traces_of(prose(300), "Where?")).overlap is Overlap.PASSAGE
    messages = ({"role": "user", "content": f"{template} How many primes are below 90?"},)
    kept = QuestionItem(item_id="q", data_source="math", context="", question="", answers=("24",), messages=messages)
    assert known.match(traces_of_item(kept)) is None
    known.add(traces_of_item(kept), "q")
    assert known.match(traces_of_item(kept)).overlap is Overlap.QUESTION_AND_DOCUMENT


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_words=st.integers(60, 3_000), share=st.floats(0.5, 0.9), at=st.floats(0, 1))
def test_a_part_of_a_document_leaks_and_an_unrelated_one_does_not(seed, num_words, share, at):
    words = prose(num_words, seed).split()
    size = int(share * num_words)
    start = int(at * (num_words - size))
    assert overlap([(" ".join(words), "q")], " ".join(words[start : start + size])) is Overlap.PASSAGE
    assert overlap([(" ".join(words), "q")], prose(num_words, seed + 10_001)) is None
