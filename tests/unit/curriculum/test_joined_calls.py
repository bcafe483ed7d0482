"""Callers share calls; every one of them gets its own reply."""

from __future__ import annotations

import asyncio

import pytest

from curriculum.joined_calls import JoinedCalls


class Keeper:
    """Keeps every lease once; answers when `gate` opens, and fails with `error` if there is one."""

    def __init__(self) -> None:
        self.calls = []
        self.gate = asyncio.Event()
        self.error = None
        self._kept = set()

    async def __call__(self, lease_ids):
        self.calls.append(list(lease_ids))
        await self.gate.wait()
        if self.error:
            raise self.error
        return [self._keep(lease_id) for lease_id in lease_ids]

    def _keep(self, lease_id):
        is_new = lease_id not in self._kept
        self._kept.add(lease_id)
        return is_new


def scene(play, **options):
    async def run():
        keeper = Keeper()
        keep = JoinedCalls(keeper, **options)
        return await play(keeper, lambda lease_id: asyncio.create_task(keep(lease_id)))

    return asyncio.run(run())


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_comes_while_a_call_is_under_way_goes_out_together():
    async def play(keeper, keep):
        first = keep(0)
        await settle()
        others = [keep(1), keep(2), keep(0)]
        await settle()
        keeper.gate.set()
        assert await asyncio.gather(first, *others) == [True, True, True, False]
        assert keeper.calls == [[0], [1, 2, 0]]

    scene(play)


def test_of_two_equal_requests_that_share_a_call_each_gets_its_own_reply():
    async def play(keeper, keep):
        keeper.gate.set()
        assert await asyncio.gather(keep(7), keep(7), keep(8)) == [True, False, True]
        assert keeper.calls == [[7, 7, 8]]

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
        assert await keep(2)

    scene(play)


def test_a_caller_that_is_cancelled_leaves_the_others_alone_and_its_reply_unclaimed():
    unclaimed = []

    async def play(keeper, keep):
        impatient, patient = keep(0), keep(1)
        await settle()
        impatient.cancel()
        await settle()
        keeper.gate.set()
        assert await patient
        assert impatient.cancelled()

    scene(play)
    scene(play, unclaimed=unclaimed.append)
    assert unclaimed == [True]
