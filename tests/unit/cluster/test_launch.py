"""An actor that does not start: by its own fault, or because one that it calls died."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.processes.launch import _named
from cluster.run.recovery import RestartFromCheckpoint
from curriculum.errors import RunFailed, UserError


def started(error):
    async def reply():
        raise error

    return asyncio.run(_named("rollout-0", reply()))


def raised(error):
    name = type(error).__name__
    return RayTaskError("__init__", f"Traceback ...\n{name}: {error}", error)


def test_an_actor_whose_process_dies_while_it_starts_is_started_again():
    with pytest.raises(RestartFromCheckpoint, match="rollout-0 died while it started"):
        started(ActorDiedError())


def test_an_actor_that_could_not_start_since_another_one_died_is_started_again():
    with pytest.raises(RestartFromCheckpoint, match="rollout-0 did not start: what it calls died: "):
        started(raised(ActorDiedError()).as_instanceof_cause())
    with pytest.raises(RestartFromCheckpoint, match="what it calls died"):
        started(ActorDiedError(raised(ActorDiedError())))


def test_an_actor_that_fails_while_it_starts_ends_the_run_with_its_own_words():
    with pytest.raises(RunFailed, match=r"^rollout-0 did not start: model\.path: no weights$") as caught:
        started(raised(UserError("model.path: no weights")).as_instanceof_cause())
    assert not isinstance(caught.value, RestartFromCheckpoint)
