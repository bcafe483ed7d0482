"""What an actor says of itself, and when it ends because nobody asks any more; on a clock of the test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from curriculum.heartbeat import IDLE, START, Lifeline, Pulse, descendants, kill_processes, reported


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Worker:
    def __init__(self, pulse) -> None:
        self._pulse = pulse

    @reported
    def accumulate(self, clock):
        clock.s += 7
        return self._pulse.beat("node")


def test_an_idle_actor_never_stands_still():
    clock = Clock()
    pulse = Pulse(now=clock)
    clock.s = 1e6
    beat = pulse.beat("node")
    assert (beat.doing, beat.still_s, beat.pid, beat.node_id) == (IDLE, 0.0, os.getpid(), "node")


def test_work_stands_still_from_its_last_progress_on():
    clock = Clock()
    pulse = Pulse(now=clock)
    with pulse.doing("update"):
        clock.s = 50.0
        assert (pulse.beat("").doing, pulse.beat("").still_s) == ("update", 50.0)
        pulse.progress()
        clock.s = 52.0
        assert pulse.beat("").still_s == 2.0
    assert pulse.beat("").doing == IDLE


def test_a_reported_method_shows_its_own_name_and_begins_afresh():
    clock = Clock()
    worker = Worker(Pulse(now=clock))
    clock.s = 100.0
    beat = worker.accumulate(clock)
    assert (beat.doing, beat.still_s) == ("accumulate", 7.0)


def without_thread(lifeline):
    pulse = Pulse()
    pulse._lifeline = lifeline
    return pulse


def test_an_actor_outlives_its_driver_by_the_bound_counted_from_the_last_question():
    pulse = without_thread(Lifeline(orphan_s=3.0, startup_s=10.0))
    pulse.beat("")
    assert [pulse.tick() for _ in range(3)] == [False, False, False]
    pulse.beat("")
    assert [pulse.tick() for _ in range(4)] == [False, False, False, True]


def test_before_the_first_question_an_actor_may_take_as_long_as_its_start():
    pulse = without_thread(Lifeline(orphan_s=3.0, startup_s=5.0))
    assert [pulse.tick() for _ in range(6)] == [False] * 5 + [True]


def test_an_actor_that_loads_its_model_later_may_take_as_long_as_its_start_too():
    pulse = without_thread(Lifeline(orphan_s=3.0, startup_s=5.0))
    pulse.beat("")
    with pulse.doing(START):
        assert [pulse.tick() for _ in range(6)] == [False] * 5 + [True]
    assert pulse.tick(), "no longer than any other actor when it is loaded"


def test_without_a_lifeline_nobody_needs_to_ask():
    pulse = Pulse()
    assert not any(pulse.tick() for _ in range(10_000))


def test_processes_are_killed_with_the_one_that_made_them_however_it_ends():
    script = (
        "import subprocess, sys, signal; from curriculum.heartbeat import kill_with_this_process\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
        "child.send_signal(signal.SIGSTOP); kill_with_this_process((child.pid,)); print(child.pid, flush=True)\n"
        "signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    process.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)


def test_a_process_without_a_driver_ends_itself_and_its_children():
    script = (
        "import signal, subprocess, sys; from curriculum.heartbeat import Lifeline, Pulse\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); pulse = Pulse(Lifeline(orphan_s=0.5, startup_s=0.5)); signal.pause()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
        child = int(process.stdout.readline())
        assert process.wait(20) == 1
        assert "no sign of the driver for cluster.orphan_s; this process ends" in process.stderr.read()
    assert not is_alive(child)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_descendants_are_found_and_killed_also_stopped_ones():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import signal; signal.pause()'])"
    process = subprocess.Popen([sys.executable, "-c", child])
    while len(found := descendants(process.pid)) < 1:
        time.sleep(0.01)
    assert process.pid in descendants(os.getpid())
    kill_processes((process.pid, *found))
    assert process.wait(10) == -9
    kill_processes((process.pid,))  # it is gone already
