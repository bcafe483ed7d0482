import random

from hypothesis import given
from hypothesis import strategies as st

from curriculum.controls import NUM_NEIGHBOURS, documents_under

PASSAGES = ("The mill stands.", "Oats cost four.", "THE  MILL\nstands. ", "Rye costs five shillings.")


def test_without_its_document_a_question_is_asked_alone():
    assert documents_under("no_document", ("a text", "", "another"), seed=1) == ("", "", "")


def test_every_question_gets_a_document_that_is_not_its_own():
    texts = [f"{'word ' * number}{number}" for number in range(30)]

    others = documents_under("other_document", texts, seed=0)

    assert all(other in texts and other != text for text, other in zip(texts, others, strict=True))


def test_a_document_that_differs_in_case_and_white_space_alone_is_no_other_one():
    others = documents_under("other_document", PASSAGES, seed=0)

    assert {others[0], others[2]} <= {PASSAGES[1], PASSAGES[3]}


def test_questions_that_share_a_document_share_the_other_one():
    others = documents_under("other_document", PASSAGES, seed=5)

    assert others[0] == others[2]


def test_with_two_documents_they_are_exchanged():
    assert documents_under("other_document", ("one", "two", "one"), seed=3) == ("two", "one", "two")


def test_a_question_without_a_document_of_its_own_has_no_other_one():
    assert documents_under("other_document", ("", "one", "two"), seed=3) == (None, "two", "one")


def test_there_is_no_other_document_where_all_questions_are_about_one():
    assert documents_under("other_document", ("one", "One "), seed=0) == (None, None)
    assert documents_under("other_document", (), seed=0) == ()


def test_the_other_document_is_about_as_long():
    lengths = list(range(100, 100_000, 100))
    random.Random(0).shuffle(lengths)

    others = documents_under("other_document", ["x" * length for length in lengths], seed=0)

    assert all(
        abs(len(other or "") - length) <= NUM_NEIGHBOURS * 100 for length, other in zip(lengths, others, strict=True)
    )


@given(st.lists(st.text("ab ", max_size=5), max_size=20), st.integers(0, 9))
def test_the_same_seed_gives_the_same_documents_and_none_is_its_own(documents, seed):
    others = documents_under("other_document", documents, seed=seed)

    assert others == documents_under("other_document", documents, seed=seed)
    assert all(
        other is None or other.split() != document.split() for document, other in zip(documents, others, strict=True)
    )


def test_another_seed_gives_other_documents():
    texts = [f"document {number}" for number in range(30)]

    assert documents_under("other_document", texts, seed=0) != documents_under("other_document", texts, seed=1)
