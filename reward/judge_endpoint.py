"""The judge behind an OpenAI-compatible endpoint: verdicts from its replies, and a circuit breaker in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from reward.chat_endpoint import ChatEndpoint, NoReplyError, text_of
from reward.circuit import CircuitBreaker, JudgeEvent
from reward.config import MAX_BACKOFF_S, MAX_FAILURES, MAX_RETRIES, OpenAIJudge
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.judge_tally import NO_VERDICT, JudgeTally
from reward.score import Verdict


class OpenAIJudgeClient:
    """A client of an endpoint; a question that gets no reply is unknown and never delays the others.

    Consumes: questions.  Waits for: `ChatEndpoint`, at most `deadline_s` for each of them.  Unblocked by: a reply, the
    end of the retries, or the circuit breaker.

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
        self._config = config
        self.tally = JudgeTally()
        self._circuit = CircuitBreaker(config.name, max_failures=max_failures, cooldown_s=config.cooldown_s)
        self._endpoint = ChatEndpoint(
            base_url=config.base_url,
            model=config.model,
            timeout_s=config.timeout_s,
            api_key_env=config.api_key_env,
            max_retries=max_retries,
            max_backoff_s=max_backoff_s,
            max_concurrency=config.max_concurrency,
            circuit=self._circuit,
            request_fields=config.request_fields,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question, in their order; unknown where there is no reply or no verdict in it."""
        return await asyncio.gather(*[self._verdict(question) for question in questions])

    def drain_events(self) -> list[JudgeEvent]:
        """Return the changes of the circuit breaker since the last call."""
        return self._circuit.drain_events()

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    async def _verdict(self, question: JudgeQuestion) -> Verdict:
        try:
            async with asyncio.timeout(self._config.deadline_s):
                reply = await self._endpoint.ask(
                    judge_messages(question), first_text, temperature=0.0, max_tokens=self._config.max_tokens
                )
        except NoReplyError as error:
            self.tally.add(str(error))
            return Verdict.UNKNOWN
        except TimeoutError:
            self.tally.add(f"no reply within {self._config.deadline_s:g} s")
            return Verdict.UNKNOWN
        verdict = parse_verdict(reply)
        self.tally.add(NO_VERDICT if verdict is Verdict.UNKNOWN else None)
        return verdict


def first_text(completion: Any) -> str:
    """Return the text of the first choice of a chat completion, without any thinking that the server took out of it."""
    return text_of(completion["choices"][0]["message"], "content")
