"""The judge's back ends: a vLLM engine in this process, or any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from actors.config import EngineConfig
from actors.engine import EngineDied, VLLMEngine, end_process
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from reward.config import OpenAIJudge, VllmJudge
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.score import Verdict


class VllmJudgeEngine:
    """A judge model in vLLM, greedy, so that equal questions get equal verdicts.

    If the engine process dies, this process ends with it and Ray restarts both.
    """

    def __init__(self, config: VllmJudge, *, on_gpu: bool, enforce_eager: bool) -> None:
        """Loads the model; blocks until it can answer."""
        self._prompt = ChatPrompt(load_tokenizer(config.model))
        self._max_prompt_tokens = config.max_model_len - config.max_tokens
        self._sampling = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_response_tokens=config.max_tokens)
        self._engine = VLLMEngine(
            config.model,
            EngineConfig(
                dtype=config.dtype,
                gpu_memory_utilization=config.gpu_memory_utilization,
                enforce_eager=enforce_eager,
            ),
            max_model_len=config.max_model_len,
            stop_token_ids=self._prompt.stop_token_ids,
            seed=0,
            on_gpu=on_gpu,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """One verdict per question, in their order; vLLM batches them."""
        return await asyncio.gather(*[self._verdict(question) for question in questions])

    async def _verdict(self, question: JudgeQuestion) -> Verdict:
        prompt_ids = self._prompt.encode_messages(judge_messages(question))
        if len(prompt_ids) > self._max_prompt_tokens:
            return Verdict.UNKNOWN
        try:
            samples = await self._engine.sample(prompt_ids.tolist(), self._sampling, seed=0)
        except EngineDied:
            end_process()
        return parse_verdict(self._prompt.decode(samples[0].token_ids))


class OpenAIJudgeClient:
    """A judge behind an OpenAI-compatible endpoint; the client retries with back-off, then the question is unknown."""

    def __init__(self, config: OpenAIJudge) -> None:
        """Opens the client; the key comes from the environment, endpoints without one ignore it."""
        from openai import AsyncOpenAI

        self._config = config
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=config.max_retries,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """One verdict per question, in their order; a request that fails makes its own question unknown."""
        from openai import OpenAIError

        replies = await asyncio.gather(*[self._ask(question) for question in questions], return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, OpenAIError):
                raise reply
        return [parse_verdict(reply if isinstance(reply, str) else None) for reply in replies]

    async def _ask(self, question: JudgeQuestion) -> str | None:
        async with self._slots:
            reply = await self._client.chat.completions.create(
                model=self._config.model,
                messages=judge_messages(question),  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=self._config.max_tokens,
            )
        return reply.choices[0].message.content if reply.choices else None
