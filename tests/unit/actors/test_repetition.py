"""Whether an answer ended up repeating itself."""

from __future__ import annotations

import random

import pytest

from actors.repetition import MAX_TOKENS, ends_in_repetition

TEXT = list(range(100, 160))


@pytest.mark.parametrize("period", [[7], [7, 8], [7, 7, 8], list(range(30))])
def test_a_tail_of_one_period_is_a_repetition(period):
    assert ends_in_repetition(TEXT + period * (4 * 32 // len(period)))


def test_the_last_repetition_may_be_cut_anywhere():
    assert ends_in_repetition([*TEXT, *[1, 2, 3, 4, 5, 6, 7, 8, 9] * 5, 1, 2])


def test_three_times_is_no_repetition():
    assert not ends_in_repetition(TEXT * 3)
    assert ends_in_repetition(TEXT * 4)


def test_short_runs_are_ordinary_text():
    assert not ends_in_repetition(TEXT + [7] * 31)
    assert ends_in_repetition(TEXT + [7] * 32)


def test_an_answer_that_found_its_way_out_does_not_repeat_itself():
    assert not ends_in_repetition([7] * 200 + TEXT)


def test_what_varies_is_no_repetition():
    rng = random.Random(0)
    assert not ends_in_repetition([rng.randrange(3) for _ in range(2000)])
    assert not ends_in_repetition([])


def test_only_the_tail_is_looked_at():
    assert ends_in_repetition(TEXT * 200 + [5] * MAX_TOKENS)
    assert not ends_in_repetition(list(range(MAX_TOKENS // 3)) * 30), "a period longer than a quarter of the window"
