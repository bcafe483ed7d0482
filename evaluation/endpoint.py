"""Answers from an OpenAI-compatible endpoint: bounded in time and retries; every reply is checked."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from evaluation.config import EndpointGenerator, SamplingConfig
from evaluation.generator import Completion, GenerationError, GeneratorDown
from evaluation.prompts import Prompt
from reward.judge_endpoint import BadReplyError, backoff_s, failure_of

MAX_FAILURES_IN_A_ROW = 20
"""Prompts in a row without an answer after which the endpoint counts as down."""


class OpenAIGenerator:
    """A client that sends each prompt as a chat with one user message.

    Consumes: prompts, as many at a time as the caller sends.  Waits for: a reply, at most `timeout_s` per attempt.
    Unblocked by: a reply or the end of the retries.
    """

    def __init__(self, config: EndpointGenerator, sampling: SamplingConfig) -> None:
        """Open the client; the key comes from the environment, and endpoints without one ignore it."""
        from openai import AsyncOpenAI

        self._config = config
        self._sampling = sampling
        self._failures_in_a_row = 0
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=0,
        )

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """Sample one answer.

        Raises:
            GenerationError: every attempt failed.
            GeneratorDown: so many prompts in a row failed that the endpoint must be down.
        """
        try:
            completion = await self._ask(prompt, seed)
        except GenerationError as error:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise GeneratorDown(
                    f"{self._config.base_url}: {MAX_FAILURES_IN_A_ROW} prompts in a row got no answer ({error}); run "
                    "the same command again when it is back, it continues where it stopped"
                ) from error
            raise
        self._failures_in_a_row = 0
        return completion

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, prompt: Prompt, seed: int) -> Completion:
        from openai import OpenAIError

        for attempt in range(self._config.max_retries + 1):
            is_last = attempt == self._config.max_retries
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return completion_of(await self._request(prompt, seed))
            except (OpenAIError, OSError, ValueError) as error:  # TimeoutError is an OSError
                failure = failure_of(error, is_last=is_last)
                if is_last or not failure.is_retried:
                    raise GenerationError(failure.reason) from error
            await asyncio.sleep(backoff_s(attempt, failure.retry_after_s, longest_s=self._config.max_backoff_s))
        raise AssertionError("the last attempt returns or raises")

    async def _request(self, prompt: Prompt, seed: int) -> str:
        reply = await self._client.chat.completions.with_raw_response.create(
            model=self._config.model,
            messages=[{"role": "user", "content": prompt.text}],
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_response_tokens,
            seed=seed,
        )
        return reply.http_response.text


def completion_of(body: str) -> Completion:
    """Return the first choice of a chat completion.

    Thinking that a server took out of the answer (`reasoning_content`, `reasoning`) is put back into its tags.

    Raises:
        BadReplyError: the body is HTML, broken JSON or JSON of another shape.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        text = _text(choice["message"])
        usage: dict[str, Any] = reply.get("usage") or {}
        num_tokens = int(usage.get("completion_tokens") or 0)
        is_truncated = choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadReplyError(f"the reply is no chat completion: {' '.join(body[:200].split())!r:.80}") from error
    return Completion(text=text, num_tokens=num_tokens, is_truncated=is_truncated)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(content, str | None) or not isinstance(thinking, str | None):
        raise TypeError("the message holds no text")
    return f"<think>{thinking}</think>{content or ''}" if thinking else content or ""
