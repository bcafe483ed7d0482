"""The plain object behind the actor handle: what the driver is told of a judge that is down."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.prompt import ChatPrompt, load_tokenizer
from actors.trajectory import FinishReason, Group, Trajectory, VersionSpan
from curriculum.secrets import endpoint_secrets
from curriculum.task import Task, TaskLease
from reward.circuit import CircuitState
from reward.config import OpenAIJudge, OverlongConfig, RewardConfig
from reward.judge_actor import JudgeActor

POLICY = str(Path(__file__).parents[3] / "recipes" / "assets" / "local_base")


@pytest.fixture(scope="module")
def prompt():
    return ChatPrompt(load_tokenizer(POLICY))


def judge_actor(config, secrets=None):
    return JudgeActor(name="judge-0", config=config, policy_path=POLICY, on_gpu=False, trust_remote_code=False,
                      secrets=secrets or {})  # fmt: skip


def trajectory(response_ids):
    return Trajectory(
        response_ids=response_ids,
        rollout_logprobs=np.zeros(len(response_ids), np.float32),
        finish_reason=FinishReason.STOP,
        versions=(VersionSpan(start=0, version=0),),
    )


def group(prompt, *answers):
    trajectories = tuple(trajectory(prompt.encode_response(f"the answer is {answer}")) for answer in answers)
    task = Task(
        task_id="t", data_source="demo", question="how many ?", answers=("seven",), prompt_ids=np.array([1], np.int32),
        phase=0,
    )  # fmt: skip
    lease = TaskLease(lease_id=0, task_id="t", attempt=0, replayed=False, phase=0)
    return Group(
        task=task, lease=lease, trajectories=trajectories, temperature=1.0, max_response_tokens=10, engine="fake"
    )


def test_a_judge_that_is_down_leaves_unknown_scores_and_events_that_are_handed_out_once(prompt, dead_url):
    judge = OpenAIJudge(base_url=dead_url, model="m")

    async def session():
        actor = judge_actor(RewardConfig(judge=judge))
        scores = await actor.score_group(group(prompt, "seven", "7", "8", "9"))
        return scores, await actor.drain_events(), await actor.drain_events()

    scores, events, drained_again = asyncio.run(session())
    assert [score.reward for score in scores] == [1.0, None, None, None]
    assert [event.state for event in events] == [CircuitState.OPEN]
    assert drained_again == []


def test_an_answer_that_was_cut_is_unknown_whatever_it_says_and_nobody_is_asked(dead_url, prompt):
    judge = OpenAIJudge(base_url=dead_url, model="m")
    whole = group(prompt, "seven", "seven", "seven")
    cut = replace(whole.trajectories[1], finish_reason=FinishReason.DEADLINE)
    mixed = replace(whole, trajectories=(whole.trajectories[0], cut, cut))

    async def session():
        actor = judge_actor(RewardConfig(judge=judge))
        return await actor.score_group(mixed), await actor.drain_events()

    scores, events = asyncio.run(session())
    assert [(score.accuracy, score.judge) for score in scores] == [(1.0, None), (None, None), (None, None)]
    assert [score.reason for score in scores[1:]] == ["cut before its end: deadline"] * 2
    assert events == []


def test_an_answer_is_shortened_by_the_limit_under_which_its_group_was_sampled(prompt):
    answered = group(prompt, "seven")
    length = len(answered.trajectories[0].response_ids)

    async def session():
        actor = judge_actor(RewardConfig(overlong=OverlongConfig(cache_tokens=2)))
        groups = [replace(answered, max_response_tokens=length + more) for more in (2, 1, 0)]
        return [score.reward for each in groups for score in await actor.score_group(each)]

    assert asyncio.run(session()) == [1.0, 0.5, 0.0]


def test_without_a_judge_there_are_no_events():
    async def session():
        actor = judge_actor(RewardConfig())
        await actor.check_for_junk()
        return await actor.drain_events(), str(actor)

    assert asyncio.run(session()) == ([], "judge-0")


def test_the_judge_alone_gets_the_key_of_its_endpoint(dead_url, monkeypatch):
    monkeypatch.setenv("MY_KEY", "open sesame")
    monkeypatch.setenv("QWENLONG_ALLOW_ENV", "MY_KEY")
    secrets = endpoint_secrets("MY_KEY")
    monkeypatch.setenv("MY_KEY", "")  # as in the environment of every actor
    monkeypatch.delenv("QWENLONG_ALLOW_ENV")
    actor = judge_actor(RewardConfig(judge=OpenAIJudge(base_url=dead_url, model="m", api_key_env="MY_KEY")), secrets)
    assert actor._judge._endpoint._client.api_key == "open sesame"
