"""A slow engine answers between its steps, a frozen one never; on a clock of the test."""

from __future__ import annotations

import asyncio

from actors.core_pulse import CorePulse


class Core:
    """Answers a question at the end of the step that it is in."""

    def __init__(self) -> None:
        self.step_ended = asyncio.Event()
        self.num_asked = 0

    async def is_sleeping(self):
        self.num_asked += 1
        await self.step_ended.wait()
        return False

    async def end_step(self):
        self.step_ended.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.step_ended.clear()


def test_a_slow_prefill_is_as_old_as_its_step_and_a_frozen_core_grows_older():
    async def scenario():
        clock, core = [0.0], Core()
        pulse, seen = CorePulse(core.is_sleeping, now=lambda: clock[0]), []
        for _ in range(12):  # chunks of a prompt of 60 000 tokens, 20 s each
            seen.append(pulse.still_s())
            await asyncio.sleep(0)
            clock[0] += 20.0
            seen.append(pulse.still_s())
            await core.end_step()
        assert set(seen) == {0.0, 20.0}
        pulse.still_s()
        await asyncio.sleep(0)
        clock[0] += 700.0
        assert pulse.still_s() == 700.0, "frozen"
        assert core.num_asked == 13, "one open question at a time"

    asyncio.run(scenario())


def test_a_core_that_died_is_left_to_those_that_call_it():
    async def scenario():
        async def is_sleeping():
            raise RuntimeError("dead")

        pulse = CorePulse(is_sleeping, now=lambda: 0.0)
        pulse.still_s()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pulse.still_s() == 0.0

    asyncio.run(scenario())
