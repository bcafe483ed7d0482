"""The judge in this process: a vLLM engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.engine import VLLMEngine, end_process
from actors.faults import EngineDied
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from reward.config import VllmJudge
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.score import Verdict


class VllmJudgeEngine:
    """A judge model in vLLM with greedy decoding, so that equal questions get equal verdicts.

    If the engine process dies, this process ends with it and Ray restarts both.
    """

    def __init__(self, config: VllmJudge, *, on_gpu: bool) -> None:
        """Load the model; block until it can answer."""
        self._prompt = ChatPrompt(load_tokenizer(config.model))
        self._timeout_s = config.timeout_s
        self._max_prompt_tokens = config.max_model_len - config.max_tokens
        self._sampling = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_response_tokens=config.max_tokens)
        self._engine = VLLMEngine(
            config.model,
            config.engine_config(on_gpu=on_gpu),
            max_model_len=config.max_model_len,
            stop_token_ids=self._prompt.stop_token_ids,
            seed=0,
            on_gpu=on_gpu,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question, in their order; vLLM batches them."""
        return await asyncio.gather(*[self._verdict(question) for question in questions])

    async def close(self) -> None:
        """End the engine process."""
        self._engine.shutdown()

    async def _verdict(self, question: JudgeQuestion) -> Verdict:
        prompt_ids = self._prompt.encode_messages(judge_messages(question))
        if len(prompt_ids) > self._max_prompt_tokens:
            return Verdict.UNKNOWN
        try:
            async with asyncio.timeout(self._timeout_s):
                samples = await self._engine.sample(prompt_ids.tolist(), self._sampling, seed=0)
        except TimeoutError:
            return Verdict.UNKNOWN
        except EngineDied:
            end_process()
        return parse_verdict(self._prompt.decode(samples[0].token_ids))
