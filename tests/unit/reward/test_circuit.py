import pytest

from reward.circuit import MAX_KEPT_EVENTS, CircuitBreaker, CircuitState


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def circuit(clock):
    return CircuitBreaker("judge", max_failures=3, cooldown_s=10.0, clock=clock)


def fail(circuit, times):
    for _ in range(times):
        assert circuit.admits()
        circuit.failed("HTTP 500")


def test_it_opens_after_failures_in_a_row_and_not_before(circuit):
    fail(circuit, 2)
    assert circuit.state is CircuitState.CLOSED
    fail(circuit, 1)
    assert circuit.state is CircuitState.OPEN
    assert not circuit.admits()


def test_a_success_in_between_starts_the_count_anew(circuit):
    fail(circuit, 2)
    circuit.succeeded()
    fail(circuit, 2)
    assert circuit.state is CircuitState.CLOSED
    assert circuit.drain_events() == []


def test_after_the_cooldown_one_attempt_is_admitted(circuit, clock):
    fail(circuit, 3)
    clock.now_s += 9.9
    assert not circuit.admits()
    clock.now_s += 0.2
    assert [circuit.admits() for _ in range(3)] == [True, False, False]
    assert circuit.state is CircuitState.HALF_OPEN


def test_a_good_trial_closes_it(circuit, clock):
    fail(circuit, 3)
    circuit.admits()
    clock.now_s += 10.0
    circuit.admits()
    circuit.succeeded()
    assert circuit.admits()
    events = circuit.drain_events()
    assert [event.state for event in events] == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]
    assert [event.num_refused for event in events] == [0, 1, 1]
    assert [event.num_failures for event in events] == [3, 3, 0]


def test_a_failed_trial_opens_it_for_another_cooldown(circuit, clock):
    fail(circuit, 3)
    clock.now_s += 10.0
    fail(circuit, 1)
    assert circuit.state is CircuitState.OPEN
    clock.now_s += 9.9
    assert not circuit.admits()
    clock.now_s += 0.2
    assert circuit.admits()


def test_a_trial_that_never_reports_is_replaced(circuit, clock):
    fail(circuit, 3)
    clock.now_s += 10.0
    assert circuit.admits()
    clock.now_s += 10.0
    assert circuit.admits()
    assert not circuit.admits()


def test_failures_that_arrive_late_neither_reopen_it_nor_prolong_the_cooldown(circuit, clock):
    fail(circuit, 3)
    clock.now_s += 5.0
    circuit.failed("HTTP 500")
    clock.now_s += 5.0
    assert circuit.admits()
    assert [event.state for event in circuit.drain_events()] == [CircuitState.OPEN, CircuitState.HALF_OPEN]


def test_events_are_handed_out_once_and_kept_within_bounds(clock):
    circuit = CircuitBreaker("judge", max_failures=1, cooldown_s=0.0, clock=clock)
    for _ in range(MAX_KEPT_EVENTS):
        circuit.admits()
        circuit.failed("HTTP 500")
        circuit.admits()
        circuit.succeeded()
    assert len(circuit.drain_events()) == MAX_KEPT_EVENTS
    assert circuit.drain_events() == []
