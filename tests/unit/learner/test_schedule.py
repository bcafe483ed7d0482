import pytest

from learner.schedule import learning_rate_at


def test_the_warm_up_grows_linearly_and_ends_at_the_peak():
    rates = [learning_rate_at(step, None, peak=1.0, warmup_steps=4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_from_the_peak_to_the_floor():
    rates = [learning_rate_at(s, 6, peak=2.0, warmup_steps=2, schedule="linear", floor=0.5) for s in range(8)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0])


def test_cosine_is_half_way_in_the_middle():
    rates = [learning_rate_at(step, 4, peak=1.0, schedule="cosine") for step in (0, 2, 4, 9)]
    assert rates == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_a_falling_schedule_without_an_end_is_refused():
    with pytest.raises(ValueError, match="schedule=constant"):
        learning_rate_at(0, None, peak=1.0, schedule="linear")
