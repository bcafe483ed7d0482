"""Callers share calls to the coordinator, and no lease gets lost between them."""

from __future__ import annotations

import asyncio

import pytest

from actors.lease_batcher import LeaseBatcher


class Coordinator:
    """Gives out `leases`; answers when `gate` opens, and fails with `error` if there is one."""

    def __init__(self, leases) -> None:
        self.leases = list(leases)
        self.asked = []
        self.gate = asyncio.Event()
        self.error = None

    async def lease_up_to(self, count):
        self.asked.append(count)
        await self.gate.wait()
        if self.error:
            raise self.error
        given, self.leases = self.leases[:count], self.leases[count:]
        return given


def scene(leases, play):
    async def run():
        coordinator = Coordinator(leases)
        desk = LeaseBatcher(coordinator.lease_up_to)
        await play(coordinator, lambda: asyncio.create_task(desk.next()))

    asyncio.run(run())


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


def test_callers_that_ask_while_a_call_is_under_way_share_the_next_one():
    async def play(coordinator, ask):
        first = ask()
        await settle()
        others = [ask() for _ in range(3)]
        await settle()
        coordinator.gate.set()
        assert await asyncio.gather(first, *others) == ["a", "b", "c", None]
        assert coordinator.asked == [1, 3]

    scene("abc", play)


def test_the_lease_of_a_cancelled_caller_goes_to_the_next_one():
    async def play(coordinator, ask):
        impatient, patient = ask(), ask()
        await settle()
        impatient.cancel()
        await settle()
        coordinator.gate.set()
        assert await patient == "a"
        assert await ask() == "b"
        assert coordinator.asked == [2]

    scene("ab", play)


def test_a_failed_call_reaches_all_that_shared_it_and_nobody_after_them():
    async def play(coordinator, ask):
        coordinator.error = ConnectionError("gone")
        both = [ask(), ask()]
        coordinator.gate.set()
        for caller in both:
            with pytest.raises(ConnectionError, match="gone"):
                await caller
        coordinator.error = None
        assert await ask() == "a"

    scene("a", play)
