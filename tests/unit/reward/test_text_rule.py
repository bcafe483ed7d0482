import pytest

from reward.text_rule import texts_match


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("PARIS", "paris"),
        ("paris.", "Paris"),
        ("“Paris”", "Paris"),
        ("a Beatles", "The Beatles"),
        ("O’Hare", "O'Hare"),
        ("Netflix Inc", "Netflix, Inc."),
        ("St Johns", "St. John's"),
        ("Sam Bankman Fried", "Sam Bankman-Fried"),
        ("Saxony–Anhalt", "Saxony-Anhalt"),
        ("fleur-de-lis", "fleur - de-lis"),
        ("Boeing B-29", "Boeing B - 29"),
        ("USA", "U.S.A."),
        ("J. K. Rowling", "J.K. Rowling"),
        ("3 a.m.", "3 A.M."),
        ("AT&T", "AT and T"),
        ("1,000", "1000"),
        ("ＦＴＸ", "FTX"),
        ("Cafe\u0301", "Café"),
        ("STRASSE", "Straße"),
        ("Par\u200bis", "Paris"),
        ("北京。", "北京"),
        ("《红楼梦》", "红楼梦"),
        ("迈克尔·乔丹", "迈克尔乔丹"),
        ("C++", "c++."),
        ("Once Upon a Time", "Once Upon A Time"),
        ("vitamin a", "Vitamin A"),
    ],
)
def test_spelling_that_carries_no_meaning_is_ignored(answer, truth):
    assert texts_match(answer, truth)
    assert texts_match(truth, answer)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("no", "Norway"),
        ("1", "2013"),
        ("Obama", "Barack Obama"),
        ("not Paris", "Paris"),
        ("The capital is Paris", "Paris"),
        ("Paris or London or Rome", "Paris"),
        ("No, yes", "Yes"),
        ("上海", "北京"),
        ("7", "seven"),
        ("C", "C++"),
        ("C#", "C"),
        ("3.5", "35"),
        (".5", "5"),
        ("-5", "5"),
        ("- 5", "5"),
        ("5%", "5"),
        ("$5", "5"),
        ("1,2", "12"),
        ("10:30", "1030"),
        ("5'10", "510"),
        ("m²", "m2"),
        ("vitamin", "Vitamin A"),
        ("vitamin deficiency", "Vitamin A deficiency"),
        ("Paris\ud800", "Paris"),
        ("5\ue0005", "5.5"),
    ],
)
def test_a_difference_in_meaning_is_left_to_the_judge(answer, truth):
    assert not texts_match(answer, truth)
    assert not texts_match(truth, answer)


@pytest.mark.parametrize("nothing", ["", "a", "the", "!?", "...", "the a an", "\u200b", "“”"])
def test_what_normalises_to_nothing_matches_nothing_not_even_itself(nothing):
    assert not texts_match(nothing, nothing)
    assert not texts_match(nothing, "Paris")
    assert not texts_match("Paris", nothing)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("10", "A-10"), ("Smith", "A. Smith"), ("search", "A* search"), ("Wang", "An Wang"), ("24", "An-24"),
        ("C Milan", "A. C. Milan"), ("B testing", "A/B testing"), ("10, 12", "10-12"), ("1, 30", "1:30"),
        ("1.30", "1:30"), ("3-10", "3:10"), ("(0, 1]", "[0, 1)"), ("5\"", "5'"), ("5", "5'"),
        ("5", "5\""), ("5.3", "5-3"),
    ],
)  # fmt: skip
def test_letters_that_look_like_articles_and_separators_of_numbers_are_kept(answer, truth):
    assert not texts_match(answer, truth)
    assert not texts_match(truth, answer)
    assert texts_match(truth, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("Tale of Two Cities", "A Tale of Two Cities"), ("MRI scan", "An MRI scan"), ("cat", "A cat"),
        ("A Smith", "A. Smith"),
        ("May 3 2019", "May 3, 2019"), ("10 - 12", "10-12"), ("1990–1995", "1990-1995"), ("\"1984\"", "1984"),
    ],
)  # fmt: skip
def test_articles_and_spaces_around_separators_are_not(answer, truth):
    assert texts_match(answer, truth)
    assert texts_match(truth, answer)
