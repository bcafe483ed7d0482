"""The judge behind an OpenAI-compatible endpoint: bounded in time, retries and concurrency; every reply is checked."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

from reward.circuit import CircuitBreaker, JudgeEvent
from reward.config import MAX_BACKOFF_S, MAX_FAILURES, MAX_RETRIES, OpenAIJudge
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.score import Verdict

FIRST_BACKOFF_S = 0.5
"""Pause before the second attempt; it doubles with every further one."""
_RATE_LIMITED = 429
_RETRIED_STATUS = frozenset({408, 409, 425, _RATE_LIMITED})
_ABOUT_THE_QUESTION = frozenset({400, 413, 422})
"""Refusals of one request by an endpoint that works."""


class BadReplyError(ValueError):
    """The endpoint answered with something that is not a chat completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt has no reply, and what follows from it."""

    reason: str
    is_retried: bool = True
    is_outage: bool = True
    """Whether it counts against the endpoint."""
    retry_after_s: float | None = None
    """The pause that the endpoint asks for."""


class OpenAIJudgeClient:
    """A client of an endpoint; a question that gets no reply is unknown and never delays the others.

    Consumes: questions, at most `max_concurrency` at a time.  Waits for: a reply, at most `timeout_s` per attempt.
    Unblocked by: a reply, the end of the retries, or the circuit breaker, which refuses every attempt while it is open.

    Args:
        config: Where the endpoint is and how long a reply may take.
        max_retries: Further attempts after a failed one.
        max_backoff_s: Longest pause between two attempts, whatever the endpoint asks for.
        max_failures: Failed attempts in a row that open the circuit.
    """

    def __init__(
        self,
        config: OpenAIJudge,
        *,
        max_retries: int = MAX_RETRIES,
        max_backoff_s: float = MAX_BACKOFF_S,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        """Open the client; the key comes from the environment, and endpoints without one ignore it."""
        from openai import AsyncOpenAI

        self._config = config
        self._max_retries = max_retries
        self._max_backoff_s = max_backoff_s
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._circuit = CircuitBreaker(config.name, max_failures=max_failures, cooldown_s=config.cooldown_s)
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=0,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question, in their order; unknown where there is no reply or no verdict in it."""
        return await asyncio.gather(*[self._verdict(question) for question in questions])

    def drain_events(self) -> list[JudgeEvent]:
        """Return the changes of the circuit breaker since the last call."""
        return self._circuit.drain_events()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _verdict(self, question: JudgeQuestion) -> Verdict:
        try:
            async with asyncio.timeout(self._config.deadline_s):
                return parse_verdict(await self._ask(question))
        except TimeoutError:
            return Verdict.UNKNOWN

    async def _ask(self, question: JudgeQuestion) -> str | None:
        for attempt in range(self._max_retries + 1):
            is_last = attempt == self._max_retries
            async with self._slots:
                if not self._circuit.admits():
                    return None
                reply = await self._attempt(question, is_last=is_last)
            if isinstance(reply, str):
                return reply
            if is_last or not reply.is_retried:
                return None
            await asyncio.sleep(backoff_s(attempt, reply.retry_after_s, longest_s=self._max_backoff_s))
        return None

    async def _attempt(self, question: JudgeQuestion, *, is_last: bool) -> str | Failure:
        """Make one request; the one place that tolerates a failing endpoint. The breaker records every outcome."""
        from openai import OpenAIError

        try:
            async with asyncio.timeout(self._config.timeout_s):
                reply = completion_text(await self._request(question))
        except (OpenAIError, OSError, ValueError) as error:  # TimeoutError is an OSError
            failure = failure_of(error, is_last=is_last)
            if failure.is_outage:
                self._circuit.failed(failure.reason)
            else:
                self._circuit.succeeded()
            return failure
        self._circuit.succeeded()
        return reply

    async def _request(self, question: JudgeQuestion) -> str:
        """Return the body of the reply as it came; `completion_text` reads it."""
        reply = await self._client.chat.completions.with_raw_response.create(
            model=self._config.model,
            messages=judge_messages(question),  # type: ignore[arg-type]
            temperature=0.0,
            max_tokens=self._config.max_tokens,
        )
        return reply.http_response.text


def completion_text(body: str) -> str:
    """Return the text of the first choice of a chat completion; "" where the model said nothing.

    Raises:
        BadReplyError: the body is HTML, broken JSON or JSON of another shape.
    """
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadReplyError(f"the reply is no chat completion: {' '.join(body[:200].split())!r:.80}") from error
    if not isinstance(content, str | None):
        raise BadReplyError(f"the reply holds {type(content).__name__} instead of text")
    return content or ""


def failure_of(error: Exception, *, is_last: bool) -> Failure:
    """Return what follows from an error of an attempt.

    An endpoint that refuses one request, or asks for a pause, works; a rate limit that outlasts all retries does not.
    """
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return Failure(
            reason=f"HTTP {status}",
            is_retried=status >= 500 or status in _RETRIED_STATUS,
            is_outage=is_last if status == _RATE_LIMITED else status not in _ABOUT_THE_QUESTION,
            retry_after_s=_seconds(response.headers.get("retry-after")) if response is not None else None,
        )
    if isinstance(error, BadReplyError):
        return Failure(reason=str(error))
    cause = error.__cause__ or error
    return Failure(reason=f"{type(error).__name__}: {' '.join(str(cause).split())}"[:200])


def backoff_s(attempt: int, retry_after_s: float | None, *, longest_s: float) -> float:
    """Return the seconds to wait after attempt 0, 1, …: as the endpoint asks, else exponential with up to 25 % less."""
    if retry_after_s is not None:
        return min(retry_after_s, longest_s)
    return min(FIRST_BACKOFF_S * 2.0 ** min(attempt, 60), longest_s) * (1 - 0.25 * random.random())


def _seconds(header: str | None) -> float | None:
    """Read a Retry-After header in seconds; None for a date or anything else, which leaves it to the back-off."""
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 10 else None
