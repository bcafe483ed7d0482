"""The circuit in front of the judge's own engine: questions without a verdict in time open it, an answer closes it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

from actors.prompt import ChatPrompt, load_tokenizer
from reward.circuit import CircuitState
from reward.config import MAX_FAILURES, VllmJudge
from reward.judge_engine import VllmJudgeEngine
from reward.judge_prompt import JudgeQuestion
from reward.score import Verdict

MODEL = str(Path(__file__).parents[3] / "recipes" / "assets" / "local_base")
QUESTION = JudgeQuestion(question="how many ?", answer="7", truth="seven")
TIMEOUT_S = 0.02


class Engine:
    """Answers yes, or nothing while it is stopped."""

    def __init__(self) -> None:
        self.is_stopped = True
        self.num_asked = 0
        self.yes = ChatPrompt(load_tokenizer(MODEL)).encode_response("[[YES]]").tolist()

    async def sample(self, prompt_ids, sampling, *, seed):
        self.num_asked += 1
        if self.is_stopped:
            await asyncio.Event().wait()
        return [SimpleNamespace(token_ids=self.yes)]


def test_a_frozen_engine_is_left_alone_after_some_questions_and_tried_again_after_a_while():
    async def session():
        engine = Engine()
        config = VllmJudge(model=MODEL, timeout_s=TIMEOUT_S, max_tokens=8, max_model_len=8192)
        judge = VllmJudgeEngine(config, on_gpu=False, engine=engine)
        for _ in range(MAX_FAILURES):
            assert await judge.judge([QUESTION]) == [Verdict.UNKNOWN]
        assert await judge.judge([QUESTION] * 3) == [Verdict.UNKNOWN] * 3
        assert engine.num_asked == MAX_FAILURES, "the open circuit answers at once"
        engine.is_stopped = False
        await asyncio.sleep(config.cooldown_s)
        await judge.judge([QUESTION])
        await judge.judge([QUESTION] * 2)
        assert engine.num_asked == MAX_FAILURES + 3
        return judge.drain_events(), judge.drain_events()

    events, drained_again = asyncio.run(session())
    assert [event.state for event in events] == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]
    assert events[0].reason == "no verdict within reward.judge.timeout_s=0.02"
    assert events[0].judge.startswith("vllm ")
    assert drained_again == []
