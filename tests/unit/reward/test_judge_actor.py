"""The plain object behind the actor handle: what the driver hears of a judge that is down."""

import asyncio
from dataclasses import replace

import numpy as np

from actors.trajectory import FinishReason, Group, Trajectory, VersionSpan
from reward.circuit import CircuitState
from reward.config import OpenAIJudge, RewardConfig
from reward.judge_actor import JudgeActor


def group(*answers):
    trajectories = tuple(
        Trajectory(
            response_ids=np.array([1], np.int32),
            rollout_logprobs=np.array([-0.1], np.float32),
            text=f"the answer is {answer}",
            finish_reason=FinishReason.STOP,
            versions=(VersionSpan(start=0, version=0),),
        )
        for answer in answers
    )
    return Group(
        lease_id=0, task_id="t", data_source="demo", question="how many ?", answers=("seven",),
        prompt_ids=np.array([1], np.int32), trajectories=trajectories, phase=0, replayed=False, temperature=1.0,
        engine="fake",
    )  # fmt: skip


def test_a_judge_that_is_down_leaves_unknown_scores_and_events_that_are_handed_out_once(dead_url):
    judge = OpenAIJudge(base_url=dead_url, model="m", max_retries=0, max_failures=2)

    async def session():
        actor = JudgeActor(name="judge-0", config=RewardConfig(judge=judge), on_gpu=False)
        scores = await actor.score_group(group("seven", "7", "8", "9"))
        return scores, await actor.drain_events(), await actor.drain_events(), await actor.report()

    scores, events, drained_again, report = asyncio.run(session())
    assert [score.reward for score in scores] == [1.0, None, None, None]
    assert [event.state for event in events] == [CircuitState.OPEN]
    assert drained_again == []
    assert report.num_unknown == 3


def test_an_answer_that_was_cut_is_unknown_whatever_it_says_and_nobody_is_asked(dead_url):
    judge = OpenAIJudge(base_url=dead_url, model="m", max_retries=0, max_failures=2)
    whole = group("seven", "seven", "seven")
    cut = replace(whole.trajectories[1], finish_reason=FinishReason.DEADLINE)
    gone = replace(whole.trajectories[2], finish_reason=FinishReason.ABORT, text="the answer is 8")
    mixed = replace(whole, trajectories=(whole.trajectories[0], cut, gone))

    async def session():
        actor = JudgeActor(name="judge-0", config=RewardConfig(judge=judge), on_gpu=False)
        return await actor.score_group(mixed), await actor.report()

    scores, report = asyncio.run(session())
    assert [(score.accuracy, score.judge) for score in scores] == [(1.0, None), (None, None), (None, None)]
    assert [score.reason for score in scores[1:]] == ["cut before its end: deadline", "cut before its end: abort"]
    assert (report.num_responses, report.num_judged) == (1, 0)


def test_without_a_judge_there_are_no_events():
    async def session():
        actor = JudgeActor(name="judge-0", config=RewardConfig(), on_gpu=False)
        await actor.probe()
        return await actor.drain_events(), str(actor)

    assert asyncio.run(session()) == ([], "judge-0")
