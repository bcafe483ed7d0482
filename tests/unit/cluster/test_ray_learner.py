"""All ranks of the learner, on stand-ins for their handles: who died is named, whoever fails first."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

import cluster.processes.learner
from cluster.processes.learner import RayLearner
from cluster.run.recovery import LearnerLost
from cluster.run.waits import Waits
from curriculum.errors import RunFailed


class Rank:
    """Replies with `reply`, or raises it; dead after `num_heartbeats` more heartbeats, or never."""

    def __init__(self, reply="report", num_heartbeats=10**9) -> None:
        self.reply = reply
        self.num_heartbeats = num_heartbeats
        self.update = self.heartbeat = self

    def options(self, *, concurrency_group):
        assert concurrency_group == "heartbeat"
        return self

    async def remote(self, *arguments):
        if arguments:
            return self._value(self.reply)
        self.num_heartbeats -= 1
        return self._value("beat" if self.num_heartbeats >= 0 else ActorDiedError())

    @staticmethod
    def _value(value):
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(cluster.processes.learner, "DEATH_CHECK_S", 0.01)


def update(*ranks):
    return asyncio.run(RayLearner(ranks, reference=None).update(0.1))


def failed(error):
    return RayTaskError("update", "traceback", error).as_instanceof_cause()


def test_rank_0_reports():
    assert update(Rank("first"), Rank("second")) == "first"


def test_a_rank_that_died_is_named():
    with pytest.raises(LearnerLost, match=r"^learner-1 died in update$"):
        update(Rank(), Rank(ActorDiedError(), num_heartbeats=0))


def test_the_rank_that_died_is_named_when_another_one_fails_first():
    broken = failed(RuntimeError("Connection closed by peer"))
    with pytest.raises(LearnerLost, match=r"^learner-1 died in update$"):
        update(Rank(broken), Rank(ActorDiedError(), num_heartbeats=2))


def test_an_error_of_ranks_that_live_is_theirs():
    with pytest.raises(RuntimeError, match="traceback"):
        update(Rank(failed(RuntimeError("a bad batch"))), Rank())
    with pytest.raises(RunFailed, match="traceback"):
        update(Rank(failed(RunFailed("not finite"))), Rank())


class BusyRank:
    """Works on one call after the other, as an actor does; an update takes until `is_done`."""

    def __init__(self) -> None:
        self.is_done, self.calls, self._turn = asyncio.Event(), [], asyncio.Lock()
        self.update, self.put_weights = (Method(self, name) for name in ("update", "put_weights"))

    async def work(self, name):
        async with self._turn:
            if name == "update":
                await self.is_done.wait()
            self.calls.append(name)
            return name


class Method:
    """`rank.method.remote(...)`."""

    def __init__(self, rank, name) -> None:
        self._rank, self._name = rank, name

    def remote(self, *arguments, **options):
        return asyncio.ensure_future(self._rank.work(self._name))


def spoken_of(waits):
    return [wait.what for wait in waits.now() if not wait.is_quiet]


def test_weights_for_an_engine_wait_for_the_update_and_it_is_said_who_waits_for_whom():
    waits = Waits()

    async def restart_during_an_update():
        rank = BusyRank()
        learner = RayLearner([rank], reference=None, waits=waits)
        update = asyncio.create_task(learner.update(0.1))
        await asyncio.sleep(0.01)
        sending = asyncio.create_task(learner.put_weights(3, delta=False, receiver="rollout-1"))
        await asyncio.sleep(0.01)
        during = spoken_of(waits)
        rank.is_done.set()
        await asyncio.gather(update, sending)
        await learner.put_weights(4, delta=False)
        return during, rank.calls

    during, calls = asyncio.run(restart_during_an_update())
    assert during == ["update of the learner, then its weights for rollout-1"]
    assert calls == ["update", "put_weights", "put_weights"]
    assert spoken_of(waits) == []
