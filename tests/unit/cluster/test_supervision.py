"""Actors that die, on stand-ins for their handles: one repair per death, in order, within the failure budget."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from cluster.processes.supervision import ActorLost, SupervisedActor

HANGS = object()


def unavailable():
    return ActorUnavailableError("killed", actor_id=None)


class FakeHandle:
    """`answers` and `readies` hold what the next calls return or raise; the last one repeats."""

    def __init__(self, *, answers=("done",), readies=(1,)) -> None:
        self.answers, self.readies = list(answers), list(readies)
        self.num_calls = 0
        self.ready = self

    def remote(self):
        """`handle.ready.remote()`"""
        return self._next(self.readies)

    async def work(self):
        self.num_calls += 1
        return await self._next(self.answers)

    async def _next(self, queue):
        value = queue.pop(0) if len(queue) > 1 else queue[0]
        await asyncio.sleep(0)
        if isinstance(value, Exception):
            raise value
        if value is HANGS:
            await asyncio.Event().wait()
        return value


def supervised(handle, log, *, startup_timeout_s=5.0, deaths_during_update=0):
    deaths = [unavailable() for _ in range(deaths_during_update)]

    async def before(name):
        log.append(f"release {name}")

    async def after(name, restarted):
        assert (name, restarted) == ("rollout-0", handle)
        log.append("bring up to date")
        if deaths:
            raise deaths.pop()

    return SupervisedActor(
        "rollout-0",
        handle,
        startup_timeout_s=startup_timeout_s,
        on_fault=lambda **fields: log.append(fields["action"]),
        before_restart=before,
        after_restart=after,
    )


def call(actor, **options):
    return actor.call(lambda handle: handle.work(), **options)


def test_a_call_that_succeeds_needs_no_repair():
    log = []
    assert asyncio.run(call(supervised(FakeHandle(), log))) == "done"
    assert log == []


def test_a_dead_actor_gives_back_its_leases_restarts_gets_the_weights_and_is_asked_again():
    handle, log = FakeHandle(answers=[unavailable(), "done"]), []
    actor = supervised(handle, log)
    assert asyncio.run(call(actor)) == "done"
    assert log == ["restarting", "release rollout-0", "bring up to date", "back"]
    assert (handle.num_calls, actor.incarnation, actor.lost) == (2, 1, False)


def test_an_actor_that_is_still_starting_is_waited_for():
    handle, log = FakeHandle(answers=[unavailable(), "done"], readies=[unavailable(), 1]), []
    assert asyncio.run(call(supervised(handle, log))) == "done"
    assert log[-1] == "back"


def test_an_actor_that_dies_again_while_it_is_brought_up_to_date_is_waited_for_again():
    handle, log = FakeHandle(answers=[unavailable(), "done"]), []
    assert asyncio.run(call(supervised(handle, log, deaths_during_update=1))) == "done"
    assert log == ["restarting", "release rollout-0", "bring up to date", "bring up to date", "back"]


@pytest.mark.parametrize("state", [unavailable(), HANGS], ids=["down", "hanging"])
def test_the_clock_of_a_restart_stands_while_the_actor_is_brought_up_to_date_and_goes_on_after_it(state):
    handle, log = FakeHandle(answers=[unavailable()], readies=[1, state]), []
    actor = supervised(handle, log, startup_timeout_s=0.1)

    async def slowly_and_then_dead(name, restarted):
        await asyncio.sleep(0.3)
        log.append("brought up to date")
        raise unavailable()

    actor._after_restart = slowly_and_then_dead
    with pytest.raises(ActorLost, match=r"did not come back within cluster.startup_timeout_s"):
        asyncio.run(call(actor))
    assert log == ["restarting", "release rollout-0", "brought up to date", "lost"]


def test_callers_that_saw_the_same_death_share_one_repair():
    handle, log = FakeHandle(answers=[unavailable(), unavailable(), unavailable(), "done"]), []
    actor = supervised(handle, log)

    async def three_calls():
        return await asyncio.gather(*[call(actor) for _ in range(3)])

    assert asyncio.run(three_calls()) == ["done"] * 3
    assert log.count("restarting") == log.count("back") == 1


def test_an_actor_whose_budget_is_used_up_is_lost():
    handle, log = FakeHandle(answers=[unavailable()], readies=[ActorDiedError()]), []
    actor = supervised(handle, log)
    with pytest.raises(ActorLost, match=r"rollout-0 died and its failure budget is used up \(cluster.max_actor_res"):
        asyncio.run(call(actor))
    assert actor.lost
    assert log == ["restarting", "release rollout-0", "lost"]


def test_a_lost_actor_is_not_repaired_again():
    handle, log = FakeHandle(answers=[unavailable()], readies=[ActorDiedError()]), []
    actor = supervised(handle, log)

    async def twice():
        for _ in range(2):
            with pytest.raises(ActorLost):
                await call(actor)

    asyncio.run(twice())
    assert log.count("lost") == 1


@pytest.mark.parametrize("state", [unavailable(), HANGS], ids=["down", "hanging"])
def test_an_actor_that_does_not_come_back_in_time_is_lost(state):
    handle, log = FakeHandle(answers=[unavailable()], readies=[state]), []
    with pytest.raises(ActorLost, match=r"did not come back within cluster.startup_timeout_s"):
        asyncio.run(call(supervised(handle, log, startup_timeout_s=0.1)))
    assert log[-1] == "lost"


def test_a_call_that_kills_its_actor_every_time_is_given_up():
    handle, log = FakeHandle(answers=[unavailable()]), []
    with pytest.raises(ActorLost, match="rollout-0 died 2 times in the same call"):
        asyncio.run(call(supervised(handle, log), attempts=2))
    assert handle.num_calls == 2


def test_an_error_of_the_method_itself_is_passed_on():
    handle, log = FakeHandle(answers=[ValueError("a bad question")]), []
    with pytest.raises(ValueError, match="a bad question"):
        asyncio.run(call(supervised(handle, log)))
    assert log == []


def test_whoever_waits_for_a_repair_goes_on_when_the_actor_is_up_to_date():
    log = []
    actor = supervised(FakeHandle(answers=[unavailable(), "done"]), log)

    async def wait_for_the_repair():
        calling = asyncio.create_task(call(actor))
        while not actor.is_repairing:
            await asyncio.sleep(0)
        await actor.repaired()
        log.append("waited")
        await calling
        await actor.repaired()
        assert not actor.is_repairing

    asyncio.run(wait_for_the_repair())
    assert log == ["restarting", "release rollout-0", "bring up to date", "back", "waited"]
