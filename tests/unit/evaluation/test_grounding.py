import pytest

from benchmarks.hostile import THOUGHTS, megabyte_of, quoting_thoughts
from evaluation.grounding import DocumentIndex, PassageKind, ground, grounding_precision

DOCUMENT = (
    "Chapter 1. The old mill stood by the river for two hundred years. In 1843 the miller, Jonas Reed, sold it to the "
    "town for 1,250 crowns.\nChapter 2. The town turned the mill into a school. Its first teacher was Clara Voss, who "
    "taught there until 1871.\n第三章。河边的学校后来变成了图书馆，一共有三万本书。"
)


@pytest.fixture(scope="module")
def document():
    return DocumentIndex(DOCUMENT)


def found_in(thinking, document, **options):
    """(kind, thinking span, document span or None) of every passage."""
    return [
        (
            passage.kind,
            thinking[passage.start : passage.end],
            DOCUMENT[passage.document_start : passage.document_end] if passage.found else None,
        )
        for passage in ground(thinking, document, **options)
    ]


def test_a_quotation_is_found_with_its_offsets(document):
    quote = "the miller, Jonas Reed, sold it to the town"
    assert found_in(f'It says "{quote}".', document) == [(PassageKind.QUOTE, quote, quote)]


def test_case_punctuation_and_typography_do_not_matter(document):
    thinking = "“THE OLD MILL — stood by the river!”"
    assert found_in(thinking, document)[0][2] == "The old mill stood by the river"


def test_a_thousands_separator_does_not_matter(document):
    assert found_in('"sold it to the town for 1250 crowns"', document)[0][2] is not None


def test_a_quotation_with_one_changed_word_is_found_nearly(document):
    thinking = '"The old mill stood by the stream for two hundred years"'
    (passage,) = ground(thinking, document)
    assert 0.7 < passage.similarity < 1.0
    assert DOCUMENT[passage.document_start : passage.document_end] == (
        "The old mill stood by the river for two hundred years"
    )


def test_an_invented_quotation_is_not_found(document):
    assert found_in('"the mill burned down in a great fire"', document)[0][2] is None


def test_the_words_of_the_document_in_another_order_are_no_quotation(document):
    assert found_in('"river the by hundred mill two old stood for"', document)[0][2] is None


def test_a_quotation_with_an_ellipsis_is_looked_up_in_parts(document):
    thinking = '"The old mill stood by the river ... the town turned the mill into a school"'
    assert [span for _, _, span in found_in(thinking, document)] == [
        "The old mill stood by the river",
        "The town turned the mill into a school",
    ]


def test_names_and_terms_in_quotation_marks_are_no_passages(document):
    assert found_in('"Jonas Reed" and "Clara Voss"', document) == []


def test_what_repeats_the_question_is_no_passage(document):
    question = "Who was the first teacher of the school?"
    assert found_in(f'The question is "{question}"', document, question=question) == []


def test_a_line_behind_a_quotation_mark_of_markdown_is_a_quotation(document):
    assert found_in("> Its first teacher was Clara Voss\n", document)[0][2] == "Its first teacher was Clara Voss"


def test_a_paraphrase_is_found_where_its_content_words_are(document):
    thinking = "According to the text, Clara Voss was the school's first teacher and taught until 1871."
    ((kind, _, place),) = found_in(thinking, document)
    assert kind is PassageKind.PARAPHRASE
    assert place is not None
    assert "Clara Voss" in place


def test_a_paraphrase_with_a_wrong_number_is_not_found(document):
    thinking = "According to the text, Clara Voss was the school's first teacher and taught until 1872."
    assert found_in(thinking, document)[0][2] is None


def test_an_invented_paraphrase_is_not_found(document):
    thinking = "The document states that the bridge collapsed during a storm in winter."
    assert found_in(thinking, document)[0][2] is None


def test_the_source_may_stand_behind_the_claim(document):
    thinking = "Jonas Reed sold the mill in 1843 for 1,250 crowns, according to the document."
    ((_, claim, place),) = found_in(thinking, document)
    assert claim.startswith("Jonas Reed sold")
    assert place is not None


@pytest.mark.parametrize(
    "thinking",
    [
        "I need to check whether the document states that the bridge collapsed in winter.",
        "Where exactly does the text say that the bridge collapsed in winter?",
        "Maybe the document says that the bridge collapsed during the winter storm.",
        "The bridge collapsed during the winter storm.",
    ],
)
def test_plans_doubts_and_sentences_without_a_source_claim_nothing(document, thinking):
    assert found_in(thinking, document) == []


def test_chinese_quotations_and_paraphrases_are_found(document):
    quoted = found_in("原文是「河边的学校后来变成了图书馆」。", document)
    assert quoted == [(PassageKind.QUOTE, "河边的学校后来变成了图书馆", "河边的学校后来变成了图书馆")]
    paraphrased = found_in("根据文章，学校变成图书馆，有三万本书。", document)
    assert paraphrased[0][2] is not None
    invented = found_in("根据文章，大桥在冬天的暴风雨中倒塌了。", document)
    assert invented[0][2] is None


def test_the_precision_is_the_share_found(document):
    passages = ground('"stood by the river for two" and "burned down in a great fire"', document)
    assert grounding_precision(passages) == 0.5
    assert grounding_precision(ground("nothing quoted", document)) is None


def test_an_empty_document_grounds_nothing():
    assert grounding_precision(ground('"the old mill stood by the river"', DocumentIndex(""))) == 0.0


def test_every_quotation_in_a_document_of_sixty_thousand_words_is_found():
    text, thinking = quoting_thoughts(60_000)
    passages = ground(thinking, DocumentIndex(text))
    assert len(passages) >= 150
    assert grounding_precision(passages) == 1.0


@pytest.mark.timeout(60)  # time that grows with the square of the text would be hours
@pytest.mark.parametrize("word", THOUGHTS)
def test_a_megabyte_of_hostile_thinking_is_searched_to_its_end(document, word):
    assert grounding_precision(ground(megabyte_of(word), document)) in (None, 0.0)
