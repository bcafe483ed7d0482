"""Callers of `keep` share calls; every one of them gets its own reply."""

from __future__ import annotations

import asyncio

import pytest

from cluster.processes.joined_calls import KeepBatcher


class Keeper:
    """Keeps every lease once; answers when `gate` opens, and fails with `error` if there is one."""

    def __init__(self) -> None:
        self.calls = []
        self.gate = asyncio.Event()
        self.error = None
        self._kept = set()

    async def __call__(self, answered):
        self.calls.append([lease_id for lease_id, _ in answered])
        await self.gate.wait()
        if self.error:
            raise self.error
        new = [lease_id for lease_id, _ in answered if lease_id not in self._kept]
        self._kept.update(new)
        return new


def scene(play):
    async def run():
        keeper = Keeper()
        keep = KeepBatcher(keeper)
        return await play(keeper, lambda *ids: asyncio.create_task(keep([(lease_id, "t") for lease_id in ids])))

    return asyncio.run(run())


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_comes_while_a_call_is_under_way_goes_out_together():
    async def play(keeper, keep):
        first = keep(0)
        await settle()
        others = [keep(1), keep(2, 3), keep(4)]
        await settle()
        keeper.gate.set()
        assert await asyncio.gather(first, *others) == [(0,), (1,), (2, 3), (4,)]
        assert keeper.calls == [[0], [1, 2, 3, 4]]

    scene(play)


def test_of_two_answers_to_a_lease_one_is_kept_even_if_they_come_together():
    async def play(keeper, keep):
        keeper.gate.set()
        assert await asyncio.gather(keep(7), keep(7), keep(8)) == [(7,), (), (8,)]
        assert keeper.calls == [[7, 8], [7]]

    scene(play)


def test_a_failed_call_reaches_all_that_shared_it_and_nobody_after_them():
    async def play(keeper, keep):
        keeper.error = ConnectionError("gone")
        both = [keep(0), keep(1)]
        await settle()
        keeper.gate.set()
        for caller in both:
            with pytest.raises(ConnectionError, match="gone"):
                await caller
        keeper.error = None
        assert await keep(2) == (2,)

    scene(play)


def test_a_caller_that_is_cancelled_leaves_the_others_alone():
    async def play(keeper, keep):
        impatient, patient = keep(0), keep(1)
        await settle()
        impatient.cancel()
        await settle()
        keeper.gate.set()
        assert await patient == (1,)
        assert impatient.cancelled()

    scene(play)
