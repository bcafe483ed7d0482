"""Callers share calls to the coordinator, and no lease gets lost between them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from actors.coordinator_leases import CoordinatorLeases


class CoordinatorHandle:
    """Gives out `leases` when `gate` opens, as the handle of an actor does."""

    def __init__(self, leases) -> None:
        self.leases = list(leases)
        self.asked = []
        self.requeued = []
        self.gate = asyncio.Event()
        self.lease_up_to = SimpleNamespace(remote=self._lease_up_to)
        self.requeue = SimpleNamespace(remote=self._requeue)

    async def _lease_up_to(self, holder, count):
        self.asked.append((holder, count))
        await self.gate.wait()
        given, self.leases = self.leases[:count], self.leases[count:]
        return tuple(given)

    async def _requeue(self, lease_id, holder):
        self.requeued.append((lease_id, holder))


def scene(leases, play):
    async def run():
        coordinator = CoordinatorHandle(leases)
        source = CoordinatorLeases(coordinator, "rollout-0")
        await play(coordinator, lambda: asyncio.create_task(source.lease()))
        await source.requeue(9)
        assert coordinator.requeued == [(9, "rollout-0")]

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
        assert coordinator.asked == [("rollout-0", 1), ("rollout-0", 3)]

    scene("abc", play)


def test_the_lease_of_a_cancelled_caller_goes_to_the_next_one():
    async def play(coordinator, ask):
        impatient, patient = ask(), ask()
        await settle()
        impatient.cancel()
        await settle()
        coordinator.gate.set()
        assert {await patient, await ask()} == {"a", "b"}
        assert coordinator.asked == [("rollout-0", 2)]

    scene("ab", play)


def test_the_only_lease_goes_to_the_caller_that_is_left():
    async def play(coordinator, ask):
        impatient, patient = ask(), ask()
        await settle()
        impatient.cancel()
        await settle()
        coordinator.gate.set()
        assert await patient == "a"
        assert await ask() is None

    scene("a", play)
