"""When something that stands still is spoken of; on a clock of the test."""

from __future__ import annotations

from cluster.run.waits import Sound, Voice, Waits


def test_a_voice_speaks_after_the_notice_at_doubling_intervals_and_when_it_goes_on():
    voice = Voice(30.0)
    spoken = [second for second in range(0, 500, 5) if voice.hear(float(second)) is Sound.STILL]
    assert spoken == [30, 60, 120, 240, 480]
    assert voice.hear(1.0) is Sound.ON
    assert voice.hear(2.0) is None
    assert voice.hear(31.0) is Sound.STILL, "from the beginning again"


def test_a_voice_says_nothing_of_what_goes_on_in_time():
    voice = Voice(30.0)
    assert [voice.hear(s) for s in (0.0, 29.0, 3.0, 29.9, 0.0)] == [None] * 5


def test_a_voice_that_was_not_asked_for_long_speaks_once():
    voice = Voice(30.0)
    assert [voice.hear(400.0), voice.hear(401.0)] == [Sound.STILL, None]


def test_a_wait_is_overdue_from_its_beginning_or_the_last_arrival():
    clock = [0.0]
    waits = Waits(10.0, now=lambda: clock[0])
    with waits.on("a batch"):
        clock[0] = 9.0
        assert waits.overdue() == []
        waits.progress()
        clock[0] = 18.0
        assert waits.overdue() == []
        clock[0] = 19.0
        assert [(wait.what, still_s) for wait, still_s in waits.overdue()] == [("a batch", 10.0)]
        assert waits.overdue() == [], "spoken of already"
    assert waits.now() == []
