"""All ranks of the learner, on stand-ins for their handles: who died is named, whoever fails first."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

import cluster.processes.learner
from cluster.processes.learner import RayLearner
from cluster.run.recovery import LearnerLost
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
