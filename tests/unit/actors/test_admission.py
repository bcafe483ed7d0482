"""How many groups an engine takes in, on caches of a few hundred tokens."""

from __future__ import annotations

import asyncio

import pytest

from actors.admission import KVAdmission, RunningMean
from curriculum.errors import UserError

LIMIT = 20
"""Response limit of all groups here; the first expectation is half of it."""


def admission(capacity_tokens=100, *, block_tokens=1, max_sequences=64, max_prompt_tokens=20):
    return KVAdmission(
        capacity_tokens=capacity_tokens,
        block_tokens=block_tokens,
        max_sequences=max_sequences,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=LIMIT,
    )


async def enter(a, prompt_tokens=10, group_size=2):
    async with a.turn(group_size, LIMIT):
        return await a.reserve(prompt_tokens, group_size, LIMIT)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_running_mean_forgets_its_prior():
    mean = RunningMean(100.0, 2)
    mean.observe(10.0)
    assert mean.value == 70.0
    for _ in range(2000):
        mean.observe(10.0)
    assert mean.value == pytest.approx(10.0, abs=0.1)


def test_a_group_takes_its_prompt_once_and_half_of_the_limit_for_each_answer():
    async def session():
        a = admission()
        await enter(a, prompt_tokens=10, group_size=2)
        return a.reserved_tokens, a.num_slots(2)

    assert asyncio.run(session()) == (10 + 2 * 10, 3)


def test_tokens_count_in_whole_blocks_and_the_last_block_of_the_prompt_is_everyones_own():
    a = admission(block_tokens=16)
    assert a.group_tokens(40, 3, 10) == 32 + 3 * 32
    assert a.group_tokens(32, 3, 16) == 32 + 3 * 16


def test_groups_wait_for_room_and_enter_in_the_order_of_their_turns():
    async def session():
        a = admission(capacity_tokens=65)
        first, second = await enter(a), await enter(a)
        entered = []

        async def later(name):
            await enter(a)
            entered.append(name)

        waiting = [asyncio.create_task(later(name)) for name in ("third", "fourth")]
        await settle()
        assert entered == []
        a.release(first)
        await settle()
        assert entered == ["third"]
        a.release(second)
        await asyncio.gather(*waiting)
        return entered

    assert asyncio.run(session()) == ["third", "fourth"]


def test_an_answer_that_ends_frees_its_share():
    async def session():
        a = admission(capacity_tokens=50)
        first = await enter(a)
        second = asyncio.create_task(enter(a))
        await settle()
        assert not second.done()
        first.finish_answer(10)
        await settle()
        assert second.done()
        return a.num_running

    assert asyncio.run(session()) == 2


def test_an_answer_that_runs_counts_as_much_as_its_longest_sibling():
    async def session():
        a = admission(capacity_tokens=1000)
        group = await enter(a, prompt_tokens=10, group_size=3)
        group.finish_answer(2)
        short = group.num_tokens
        group.finish_answer(18)
        return short, group.num_tokens

    short, long = asyncio.run(session())
    assert short == 10 + 2 * 9, "the mean of eight times 10 and 2"
    assert long == 10 + 18


def test_the_lengths_of_recent_answers_decide_how_many_groups_fit():
    async def session():
        a = admission(capacity_tokens=300)
        before = a.num_slots(2)
        for _ in range(400):
            a.observe_response(2)
        shorter = a.num_slots(2)
        for _ in range(2000):
            a.observe_response(LIMIT)
        return before, shorter, a.num_slots(2)

    assert asyncio.run(session()) == (10, 21, 6)


def test_one_group_is_always_let_in_however_large():
    async def session():
        a = admission(capacity_tokens=40)
        await enter(a, prompt_tokens=20, group_size=8)
        return a.num_running, a.num_slots(8)

    assert asyncio.run(session()) == (1, 1)


def test_more_answers_than_the_engine_steps_through_at_once_would_only_queue_inside_it():
    async def session():
        a = admission(capacity_tokens=10_000, max_sequences=5)
        await enter(a)
        await enter(a)
        third = asyncio.create_task(enter(a))
        await settle()
        return a.num_slots(2), third.done()

    assert asyncio.run(session()) == (2, False)


def test_a_group_that_turns_out_longer_than_usual_waits_with_its_lease_and_nobody_overtakes_it():
    async def session():
        a = admission(capacity_tokens=100)
        first = await enter(a)
        long = asyncio.create_task(enter(a, prompt_tokens=60))
        short = asyncio.create_task(enter(a))
        await settle()
        assert not long.done()
        assert not short.done()
        a.release(first)
        await settle()
        return long.done(), short.done()

    assert asyncio.run(session()) == (True, False)


def test_an_answer_that_can_never_fit_is_an_error_that_names_the_keys():
    with pytest.raises(UserError, match=r"90 prompt \+ 20 .* 100 tokens.*cpu_kv_cache_bytes.*max_response_tokens"):
        asyncio.run(enter(admission(), prompt_tokens=90))


def test_a_turn_that_is_cancelled_lets_the_next_one_in():
    async def session():
        a = admission(capacity_tokens=40)
        first = await enter(a)
        gone, next_one = asyncio.create_task(enter(a)), asyncio.create_task(enter(a))
        await settle()
        gone.cancel()
        a.release(first)
        await settle()
        return next_one.done(), a.num_running

    assert asyncio.run(session()) == (True, 1)
