"""Actors get the model of the recipe; one that does not start: by its own fault, or because one that it calls died."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.config import YarnConfig
from cluster.processes.launch import _create_judges, _create_rollouts, _named, _start_ranks
from cluster.recipe.config import RunConfig
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


YARN = {"factor": 4.0, "original_max_tokens": 32768}


@pytest.fixture
def folders(tmp_path):
    found = (tmp_path / "policy", tmp_path / "judge")
    for folder in found:
        folder.mkdir()
    return [str(folder) for folder in found]


def given_yarn(policy, judge):
    """The YaRN that each role is started with."""
    config = RunConfig.model_validate(
        {
            "name": "x",
            "device": "cpu",
            "model": {"path": policy, "yarn": YARN},
            "data": {"train": "t.parquet"},
            "sft": {"epochs": 0},
            "curriculum": {"phases": [{"name": "a", "max_prompt_tokens": 9, "end": {"type": "steps", "steps": 1}}]},
            "reward": {"judge": {"type": "vllm", "model": judge}},
        }
    )
    found = {}

    class Actors:
        def create(self, kind, name, options, /, **arguments):
            found[name] = arguments["yarn"]

    class Method:
        def __init__(self, reply=None):
            self.reply = reply

        def remote(self, **arguments):
            found["learner-0"] = arguments.get("yarn")
            return asyncio.sleep(0, self.reply)

    prepared = SimpleNamespace(model_path=policy)
    _create_rollouts(config, prepared, Actors(), [{}])
    _create_judges(config, prepared, Actors(), [{}])
    rank = SimpleNamespace(rendezvous=Method(("host", 1)), start=Method())

    async def start():
        await asyncio.gather(*[reply for _, reply in await _start_ranks(config, prepared, [rank])])

    asyncio.run(start())
    return found


def test_engines_and_learner_get_the_yarn_of_the_model_and_a_judge_that_is_the_same_model(folders):
    policy, judge = folders
    yarn = YarnConfig.model_validate(YARN)
    assert given_yarn(policy, judge) == {"rollout-0": yarn, "judge-0": None, "learner-0": yarn}
    assert given_yarn(policy, policy) == {"rollout-0": yarn, "judge-0": yarn, "learner-0": yarn}
