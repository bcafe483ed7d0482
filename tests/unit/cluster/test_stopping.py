"""Signals: the first stops a run, another one soon after is the same request, a later one ends the process."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.run.stopping import REPEAT_S, Interrupted, StopRequest, StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_loop_runs_a_signal_interrupts_what_is_done(number):
    request = StopRequest(print)
    with pytest.raises(KeyboardInterrupt), request.handled():
        os.kill(os.getpid(), number)


def test_in_the_loop_a_signal_sets_the_event_and_says_how_to_go_on(tmp_path):
    lines = []
    request = StopRequest(lines.append)
    request.folder = tmp_path / "my run"

    async def stopped() -> bool:
        with request.listen() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 5)
            return stop.is_set()

    with request.handled():
        assert asyncio.run(stopped())
    (line,) = lines
    assert f"qwenlong train --resume '{tmp_path}/my run'" in line


def test_signals_that_come_together_are_one_request():
    clock = iter([10.0, 10.0 + REPEAT_S]).__next__
    lines = []
    request = StopRequest(lines.append, now=clock)

    async def stop_twice() -> None:
        with request.listen() as stop:
            request.receive(signal.SIGTERM)
            request.receive(signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 5)

    with request.handled():
        asyncio.run(stop_twice())
    assert len(lines) == 1


def test_a_signal_after_the_end_of_the_loop_does_not_disturb_the_clean_up():
    request = StopRequest(pytest.fail)

    async def listen() -> None:
        with request.listen():
            pass

    with request.handled():
        asyncio.run(listen())
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_later_signal_ends_the_process_at_once():
    program = textwrap.dedent("""
        import os, signal
        from cluster.run.stopping import StopRequest
        times = iter([0.0, 2.1])
        request = StopRequest(print, now=times.__next__)
        with request.handled():
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGTERM)
        print("still here")
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (143, "")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(pytest.fail).handled():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopRequest(print).handled():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_wait_is_given_up_when_the_run_is_asked_to_stop():
    async def wait() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_soon(stop.set)
        await StopSignal(stop).unless_stopped(asyncio.Event().wait())

    with pytest.raises(Interrupted):
        asyncio.run(wait())


def test_the_last_line_is_the_command_that_goes_on():
    error = Interrupted.in_folder(Path("runs/a b"))
    assert str(error) == "stopped; go on with: qwenlong train --resume 'runs/a b'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
