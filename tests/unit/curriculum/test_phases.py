import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.config import FixedEpochs, FixedSteps, PhaseEnd, Plateau
from curriculum.phases import PhaseClock, assign_phase
from curriculum.transition import EndReason


@pytest.mark.parametrize(
    ("num_tokens", "phase"),
    [(1, 0), (20_000, 0), (20_001, 1), (60_000, 1), (60_001, None)],
)
def test_a_phase_takes_lengths_above_the_previous_limit_up_to_its_own(num_tokens, phase):
    assert assign_phase(num_tokens, (20_000, 60_000)) == phase


def test_a_prompt_without_tokens_has_no_phase():
    with pytest.raises(ValueError, match="num_tokens=0"):
        assign_phase(0, (10,))


@given(st.sets(st.integers(1, 100), min_size=1), st.integers(1, 120))
def test_the_limits_of_the_assigned_phase_enclose_the_length(limits, num_tokens):
    ordered = sorted(limits)
    phase = assign_phase(num_tokens, ordered)
    if phase is None:
        assert num_tokens > ordered[-1]
    else:
        assert ([0, *ordered])[phase] < num_tokens <= ordered[phase]


def run(end: PhaseEnd, accuracies, *, trained=1, max_fruitless_steps=3, epochs_per_step=0.0, num_tasks=100):
    """Step numbers and reason at which the clock stops, or None."""
    clock = PhaseClock(end=end, max_fruitless_steps=max_fruitless_steps, num_tasks=num_tasks)
    for step, accuracy in enumerate(accuracies, start=1):
        reason = clock.advance(accuracy=accuracy, num_trained_groups=trained, epochs=step * epochs_per_step)
        if reason:
            return step, reason
    return None


def test_a_fixed_number_of_steps_ends_the_phase():
    assert run(FixedSteps(steps=3), [0.5] * 9) == (3, EndReason.STEPS)


def test_epochs_end_the_phase_when_they_are_reached():
    assert run(FixedEpochs(epochs=1.5), [0.5] * 9, epochs_per_step=0.4) == (4, EndReason.EPOCHS)


def test_epochs_of_trained_groups_end_the_phase_when_so_many_were_trained_on():
    # 10 tasks, 4 trained groups a step: 1.2 epochs after 3 steps, 1.6 after 4
    rule = FixedEpochs(epochs=1.5, of="trained")
    assert run(rule, [0.5] * 9, trained=4, num_tasks=10, epochs_per_step=9.0) == (4, EndReason.EPOCHS)


PLATEAU = Plateau(max_steps=100, patience=2)
TEN = [0.2] * 10
"""The steps that the first moving average, the mark of the others, is taken over."""


def test_a_plateau_ends_the_phase_after_patience_steps_without_progress():
    # means of ten: .2, .23, .235, .24 -> the first sets the mark, .23 is progress, .24 is not more than .01 above it
    assert run(PLATEAU, [*TEN, 0.5, 0.25, 0.25, 0.25]) == (13, EndReason.PLATEAU)


def test_slow_progress_adds_up_to_progress():
    # means of ten grow by .006: every second one is more than .01 above the mark, so patience is never used up
    assert run(PLATEAU, [0.006 * step for step in range(60)]) is None


def test_one_step_of_progress_resets_the_patience():
    # .2, .2 (stale), .23 (progress), .23 and .23 (stale)
    assert run(PLATEAU, [*TEN, 0.2, 0.5, 0.2, 0.2, 0.2]) == (14, EndReason.PLATEAU)


def test_a_plateau_waits_for_its_window():
    assert run(Plateau(max_steps=100, patience=1), [0.5] * 20) == (11, EndReason.PLATEAU)


def test_a_plateau_rule_ends_at_max_steps_while_accuracy_grows():
    rule = Plateau(max_steps=14, patience=3)
    assert run(rule, [0.05 * step for step in range(20)]) == (14, EndReason.MAX_STEPS)


def test_a_step_without_accuracy_is_neither_progress_nor_its_lack():
    # one stale step, ten that say nothing, and the second stale one
    assert run(PLATEAU, [*TEN, 0.2, *[None] * 10, 0.2]) == (22, EndReason.PLATEAU)


def test_ten_steps_of_a_partial_judge_outage_end_a_plateau_phase_at_step_118_as_without_it_not_at_40():
    # accuracy grows by .008 a step up to step 100; the mean of ten makes its last progress at step 108
    rule = Plateau(max_steps=200, patience=10)
    grown = [0.008 * min(step, 100) for step in range(1, 200)]
    assert run(rule, grown) == (118, EndReason.PLATEAU)
    outage = [*grown[:30], *[None] * 10, *grown[40:]]
    assert run(rule, outage) == (118, EndReason.PLATEAU)
    taken_for_accuracy = [*grown[:30], *[0.1] * 10, *grown[40:]]
    assert run(rule, taken_for_accuracy) == (40, EndReason.PLATEAU)


def test_fruitless_steps_in_a_row_end_any_phase():
    assert run(FixedSteps(steps=50), [None] * 9, trained=0) == (3, EndReason.FRUITLESS)


def test_a_trained_group_ends_the_row_of_fruitless_steps():
    clock = PhaseClock(end=FixedSteps(steps=50), max_fruitless_steps=2, num_tasks=9)
    reasons = [clock.advance(accuracy=0.0, num_trained_groups=n, epochs=0.0) for n in (0, 1, 0, 0)]
    assert reasons == [None, None, None, EndReason.FRUITLESS]


def test_the_rule_of_the_phase_names_the_end_if_the_step_was_fruitless_too():
    assert run(FixedSteps(steps=3), [None] * 3, trained=0) == (3, EndReason.STEPS)


accuracies_of_a_run = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=40)


@given(accuracies_of_a_run, st.integers(0, 40))
def test_a_clock_restored_from_json_goes_on_as_if_never_stopped(accuracies, stop):
    whole = PhaseClock(end=PLATEAU, max_fruitless_steps=5, num_tasks=9)
    parts = PhaseClock(end=PLATEAU, max_fruitless_steps=5, num_tasks=9)
    for step, accuracy in enumerate(accuracies):
        if step == stop:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = PhaseClock(end=PLATEAU, max_fruitless_steps=5, num_tasks=9)
            parts.load_state_dict(state)
        arguments = {"accuracy": accuracy, "num_trained_groups": step % 3, "epochs": 0.0}
        assert whole.advance(**arguments) == parts.advance(**arguments)
    assert whole.state_dict() == parts.state_dict()


@given(accuracies_of_a_run)
def test_a_plateau_phase_never_ends_before_window_and_patience_nor_after_max_steps(accuracies):
    stop = run(Plateau(max_steps=20, patience=2), (accuracies * 20)[:20], trained=1)
    assert stop is not None
    assert 12 <= stop[0] <= 20
