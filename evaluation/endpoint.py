"""Answers from an OpenAI-compatible endpoint, and when it is given up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from evaluation.config import EndpointGenerator, SamplingConfig
from evaluation.generator import Completion, GeneratorDown
from evaluation.prompts import Prompt
from reward.chat_endpoint import ChatEndpoint, NoReplyError, is_refusal, text_of

MAX_FAILURES_IN_A_ROW = 20
"""Prompts in a row without an answer after which the endpoint counts as down."""
MAX_REFUSALS_AT_FIRST = 3
"""Prompts that an endpoint refuses in the same words before it has answered any: what all requests share is wrong."""

MAX_TOKENS = 2**40
"""More tokens than any answer has."""


class OpenAIGenerator:
    """A client that sends each prompt as a chat with one user message.

    Consumes: prompts, as many at a time as the caller sends.  Waits for: `ChatEndpoint`.  Unblocked by: a reply or the
    end of the retries.
    """

    def __init__(self, config: EndpointGenerator, sampling: SamplingConfig) -> None:
        self._base_url = config.base_url
        self._sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_response_tokens,
        }
        self._failures_in_a_row = 0
        self._has_answered = False
        self._refusals: Counter[str] = Counter()
        """Refused prompts by what the endpoint says; what it says of one document differs from the next."""
        self._endpoint = ChatEndpoint(
            base_url=config.base_url,
            model=config.model,
            timeout_s=config.timeout_s,
            api_key_env=config.api_key_env,
            max_retries=config.max_retries,
            max_backoff_s=config.max_backoff_s,
            request_fields=config.request_fields,
        )

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """Sample one answer.

        Raises:
            NoReplyError: every attempt failed.
            GeneratorDown: so many prompts in a row failed that the endpoint must be down, or it refuses all of them.
        """
        messages = [{"role": "user", "content": prompt.text}]
        try:
            completion = await self._endpoint.ask(messages, completion_of, **self._sampling, seed=seed)
        except NoReplyError as error:
            self._failures_in_a_row += 1
            self._refusals[str(error)] += is_refusal(error.__cause__)
            if not self._has_answered and self._refusals[str(error)] >= MAX_REFUSALS_AT_FIRST:
                raise GeneratorDown(
                    f"{self._base_url}: it refuses every request ({error}); change the key, the model's name, the "
                    "lengths or the request fields that it names"
                ) from error
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise GeneratorDown(
                    f"{self._base_url}: {MAX_FAILURES_IN_A_ROW} prompts in a row got no answer ({error}); run "
                    "the same command again when it is back, it continues where it stopped"
                ) from error
            raise
        self._failures_in_a_row, self._has_answered = 0, True
        return completion

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def completion_of(reply: Any) -> Completion:
    """Return the first choice of a chat completion; `read_reply` tells where it has another shape.

    Thinking that a server took out of the answer (`reasoning_content`, `reasoning`) comes back in its tags.
    """
    choice: dict[str, Any] = reply["choices"][0]
    usage: dict[str, Any] = reply.get("usage") or {}
    content = text_of(choice["message"], "content")
    thinking = text_of(choice["message"], "reasoning_content") or text_of(choice["message"], "reasoning")
    return Completion(
        text=f"<think>{thinking}</think>{content}" if thinking else content,
        num_tokens=_num_tokens(usage.get("completion_tokens")),
        is_truncated=choice.get("finish_reason") == "length",
    )


def _num_tokens(value: Any) -> int:
    """Return a number of tokens; 0 where the endpoint does not count them. Raises ValueError for any other value."""
    count = int(value or 0)
    if not 0 <= count <= MAX_TOKENS:
        raise ValueError(f"completion_tokens={value!r:.40} is no number of tokens")
    return count
