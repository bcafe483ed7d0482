"""The judge in this process: a vLLM engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.config import YarnConfig
from actors.engine import VLLMEngine
from actors.engine_start import end_process
from actors.faults import EngineDied
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from curriculum.heartbeat import Heartbeat, Pulse
from reward.circuit import CircuitBreaker, JudgeEvent
from reward.config import MAX_FAILURES, VllmJudge
from reward.judge_prompt import JudgeQuestion, judge_messages, parse_verdict
from reward.judge_tally import NO_VERDICT, TOO_LONG, JudgeTally
from reward.score import Verdict


class VllmJudgeEngine:
    """A judge model in vLLM with greedy decoding, so that equal questions get equal verdicts.

    If the engine process dies, this process ends with it and Ray restarts both. Questions that get no verdict in time
    open the circuit: from then on every question is unknown at once, but for one that tries the engine now and then.
    """

    def __init__(
        self, config: VllmJudge, *, on_gpu: bool, engine: VLLMEngine | None = None, yarn: YarnConfig | None = None
    ) -> None:
        """Load the model, with YaRN if given, unless there is an `engine` that serves it; block until it can answer."""
        self._prompt = ChatPrompt(load_tokenizer(config.model), template_arguments=config.template_arguments)
        self.tally = JudgeTally()
        self._circuit = CircuitBreaker(config.name, max_failures=MAX_FAILURES, cooldown_s=config.cooldown_s)
        self._timeout_s = config.timeout_s
        self._max_prompt_tokens = config.max_model_len - config.max_tokens
        self._sampling = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_response_tokens=config.max_tokens)
        self._engine = engine or VLLMEngine(
            config.model,
            config.engine_config(on_gpu=on_gpu),
            max_model_len=config.max_model_len,
            stop_token_ids=self._prompt.stop_token_ids,
            seed=0,
            on_gpu=on_gpu,
            yarn=yarn,
        )

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question, in their order; vLLM batches them."""
        return await asyncio.gather(*[self._verdict(question) for question in questions])

    def drain_events(self) -> list[JudgeEvent]:
        """Return the changes of the circuit breaker since the last call."""
        return self._circuit.drain_events()

    def beat(self, pulse: Pulse, node_id: str) -> Heartbeat:
        """Answer the driver: what the engine does; if its process died, this one ends."""
        try:
            return self._engine.beat(pulse, node_id)
        except EngineDied:
            end_process()

    async def close(self) -> None:
        """End the engine process."""
        self._engine.shutdown()

    async def _verdict(self, question: JudgeQuestion) -> Verdict:
        prompt_ids = self._prompt.encode_messages(judge_messages(question))
        if len(prompt_ids) > self._max_prompt_tokens:
            return self._unknown(TOO_LONG)
        if not self._circuit.admits():
            return self._unknown("the engine gave no verdict in time again and again and is not asked for a while")
        try:
            async with asyncio.timeout(self._timeout_s):
                samples = await self._engine.sample(prompt_ids.tolist(), self._sampling, seed=0)
        except TimeoutError:
            late = f"no verdict within reward.judge.timeout_s={self._timeout_s:g}"
            self._circuit.failed(late)
            return self._unknown(late)
        except EngineDied:
            end_process()
        self._circuit.succeeded()
        verdict = parse_verdict(self._prompt.decode(samples[0].token_ids))
        if verdict is Verdict.UNKNOWN:
            return self._unknown(NO_VERDICT)
        self.tally.add(None)
        return verdict

    def _unknown(self, reason: str) -> Verdict:
        self.tally.add(reason)
        return Verdict.UNKNOWN
