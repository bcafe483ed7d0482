"""The driver's side of the coordinator actor, with a plain object instead of the actor's handle."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster.processes.curriculum import ray_curriculum, released_by
from cluster.roles import Curriculum
from cluster.run.recovery import CoordinatorLost
from curriculum.coordinator import Coordinator


class Handle:
    """The handle of an actor that writes down what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: self._answer(name, *arguments))

    async def _answer(self, name, *arguments):
        self.asked.append((name, *arguments))
        return [True] * len(arguments[0]) if name == "keep_all" else name


def public(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


def test_every_method_goes_to_the_actors_method_of_the_same_name():
    async def play():
        handle = Handle()
        curriculum = ray_curriculum(handle)
        assert await curriculum.open_batch(3) == "open_batch"
        assert await curriculum.phase_state() == "phase_state"
        assert handle.asked == [("open_batch", 3), ("phase_state",)]

    asyncio.run(play())


def test_groups_that_come_together_are_kept_in_one_call():
    async def play():
        handle = Handle()
        curriculum = ray_curriculum(handle)
        assert await asyncio.gather(curriculum.keep((0, "a")), curriculum.keep((1, "b"))) == [True, True]
        assert handle.asked == [("keep_all", [(0, "a"), (1, "b")])]

    asyncio.run(play())


def test_the_role_asks_for_methods_of_the_coordinator_with_their_parameters():
    for name in public(Curriculum) - {"keep"}:
        role, method = getattr(Curriculum, name), getattr(Coordinator, name)
        asked, offered = inspect.signature(role).parameters, inspect.signature(method).parameters
        assert [str(x) for x in asked.values()] == [str(x) for x in offered.values()], name


def test_a_coordinator_that_is_gone_is_named_by_every_method():
    class Gone(Handle):
        async def _answer(self, name, *arguments):
            raise ActorDiedError

    async def play():
        curriculum = ray_curriculum(Gone())
        with pytest.raises(CoordinatorLost, match="the coordinator died in state_dict"):
            await curriculum.state_dict()
        with pytest.raises(CoordinatorLost, match="the coordinator died in keep_all"):
            await curriculum.keep((0, "a"))
        with pytest.raises(CoordinatorLost, match="the coordinator died in release"):
            await released_by(Gone())("rollout-0")

    asyncio.run(play())
