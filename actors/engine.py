"""The vLLM engine: one process tree that samples answers and loads new weights."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from statistics import fmean
from typing import Any, TypeVar

from actors.config import EngineConfig, YarnConfig
from actors.core_pulse import CorePulse
from actors.engine_start import start_engine
from actors.faults import EngineDied
from actors.rollout import Sample, Sampling
from actors.vllm_arguments import engine_arguments, sampling_params, set_environment
from actors.weights.update import (
    TensorRecord,
    WeightGroup,
    WeightLoadError,
    WeightReceipt,
    WeightUpdate,
    check_follows,
)
from curriculum.errors import RunFailed, first_line
from curriculum.heartbeat import IDLE, Heartbeat, Pulse, descendants, kill_with_this_process

UNLABELLED = "default"
"""Weight version of vLLM before the first update."""
DEATH_POLL_S = 1.0
"""Seconds between two checks that the engine process is alive during a long call."""
ABORT_AGAIN_S = 1.0
"""Seconds between two aborts of a request after its timeout."""
SLEEP_LEVEL = 1
"""vLLM keeps the weights in host memory. Level 2 drops them, and with them what was computed while the model loaded."""

_T = TypeVar("_T")


class VLLMEngine:
    """vLLM's asynchronous engine with the few methods that this project needs.

    Log-probabilities are `processed_logprobs`: of the distribution that was sampled from, after temperature and top-p.
    Weight updates pause generation, keep running requests, clear the prefix cache, and resume.
    """

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        *,
        max_model_len: int,
        stop_token_ids: Sequence[int],
        seed: int,
        on_gpu: bool,
        trust_remote_code: bool = False,
        fp32_logits: bool = False,
        yarn: YarnConfig | None = None,
        sleeps: bool = False,
    ) -> None:
        """Load the model; block until the engine can sample.

        Args:
            model_path: Hugging Face folder or hub id.
            config: resources of the engine.
            max_model_len: largest prompt plus response, in tokens.
            stop_token_ids: tokens that end an answer.
            seed: engine seed; every request has its own as well.
            on_gpu: whether a GPU is visible.
            trust_remote_code: whether code that comes with the model may run.
            fp32_logits: compute logits in fp32 whatever the type of the model, for log-probabilities that are compared
                with the learner's.
            yarn: put on the rope of the model.
            sleeps: prepare for `sleep`, by which the engine lends its GPU to the learner.

        Raises:
            UserError: with `fp32_logits`, a feature is on whose log-probabilities are not those of the model.
            RunFailed: vLLM cannot serve the model on this machine.
        """
        set_environment(on_gpu=on_gpu)
        from actors.prefill_counter import PrefillCounter

        arguments = engine_arguments(
            model_path,
            config,
            max_model_len=max_model_len,
            seed=seed,
            on_gpu=on_gpu,
            trust_remote_code=trust_remote_code,
            fp32_logits=fp32_logits,
            yarn=yarn,
            sleeps=sleeps,
        )
        self._prefill, others = PrefillCounter(), descendants(os.getpid())
        listener = self._prefill.stat_logger()
        self._engine = start_engine(arguments, config, is_compared=fp32_logits, stat_logger=listener)
        self._stop_token_ids = list(stop_token_ids)
        self._request_ids = itertools.count()
        self._changing = asyncio.Lock()
        self._change = IDLE
        """What is done under the lock: weights are loaded, or the engine falls asleep or wakes up."""
        self._is_asleep = False
        self._policy_version = 0
        self._receipt: WeightReceipt | None = None
        self._group: WeightGroup | None = None
        self._core = CorePulse(self._engine.is_sleeping)
        own = tuple(pid for pid in descendants(os.getpid()) if pid not in others)
        self._guardian = kill_with_this_process(own)

    @property
    def policy_version(self) -> int:
        """Number of weight updates applied since the base model."""
        return self._policy_version

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        num_tokens = self._engine.vllm_config.cache_config.kv_cache_size_tokens
        assert num_tokens is not None, "vLLM sets the size of its cache when it starts"
        return num_tokens

    @property
    def block_tokens(self) -> int:
        """Tokens of one block of the KV cache; the samples of a group share whole blocks of their prompt only."""
        return self._engine.vllm_config.cache_config.block_size

    @property
    def num_running(self) -> int:
        """Answers that are not finished."""
        return self._engine.output_processor.get_num_unfinished_requests()

    @property
    def num_prefilled_tokens(self) -> int:
        """Prompt tokens computed since the start; those found in the prefix cache are not among them."""
        return self._prefill.num_computed_tokens

    async def sample(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        seed: int,
        timeout_s: float | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Sample answers to one prompt in one request, so that the prompt is prefilled once.

        Arguments are those of `actors.rollout.Engine.sample`. After an error or a cancellation no part of the request
        is left in the engine.

        Raises:
            EngineDied: the engine process died.
        """
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        request = str(next(self._request_ids))
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        params = sampling_params(sampling, seed=seed, stop_token_ids=self._stop_token_ids)
        outputs: dict[int, Any] = {}
        try:
            async with self._ending(request, timeout_s):
                async for reply in self._engine.generate(prompt, params, request):
                    for output in reply.outputs:
                        outputs[output.index] = output
                        if on_finished and output.finish_reason not in (None, "abort"):
                            on_finished(len(output.token_ids))
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine died while it sampled request {request}") from error
        return [_sample(outputs[index]) for index in sorted(outputs)]

    def check_alive(self) -> None:
        """Check that the engine process is alive.

        Raises:
            EngineDied: it died.
        """
        if self._engine.errored:
            raise EngineDied("the vLLM engine died")

    def beat(self, pulse: Pulse, node_id: str) -> Heartbeat:
        """Answer the driver: what the engine does, and for how long its core has owed an answer.

        Raises:
            EngineDied: the engine process died.
        """
        self.check_alive()
        doing = self._change if self._changing.locked() else "generate" if self.num_running else IDLE
        return pulse.beat(node_id, doing=doing, still_s=self._core.still_s())

    async def load_weights(self, update: WeightUpdate) -> WeightReceipt:
        """Replace all weights by those of a segment, or by those that the learner is about to send.

        Running requests are kept and continue with the new weights; cached prefixes of the old ones are dropped.
        Updates are loaded one after another, and a version that the engine already holds is not loaded again. After an
        error generation stays paused, so that nothing is sampled from a mixture of old and new weights.

        Returns:
            the tensors that the workers loaded into the model, with checksums.

        Raises:
            WeightVersionError: the update does not follow the weights of the engine.
            WeightLoadError: a tensor cannot be loaded or did not arrive, a parameter got no values, or the workers of
                this engine loaded different values.
            EngineDied: the engine process died.
        """
        async with self._change_to("load_weights"):
            if self._receipt is None or update.version != self._receipt.version:
                check_follows(self.policy_version, update.version)
                try:
                    work = self._take(update)
                    self._receipt = await self._alive_through(f"loaded weights {update.version}", work)
                except EngineDied:
                    raise
                except Exception as error:  # vLLM raises a bare Exception for every error of a worker
                    raise WeightLoadError(f"weights of version {update.version}: {error}") from error
            return self._receipt

    async def sleep(self) -> None:
        """End what is running, then give the memory of weights and KV cache back; return at once if that is done.

        The weights wait in host memory, cached prefixes are dropped, and requests that come meanwhile wait. On a CPU
        vLLM stops its scheduler and drops the prefixes, but keeps its memory.

        Raises:
            EngineDied: the engine process died.
        """
        async with self._change_to("sleep"):
            if not self._is_asleep:
                await self._alive_through("fell asleep", self._engine.sleep(level=SLEEP_LEVEL, mode="wait"))
                self._is_asleep = True

    async def wake_up(self) -> None:
        """Take the memory again, with the weights from before `sleep`; return at once if the engine is awake.

        Raises:
            EngineDied: the engine process died.
            RunFailed: the memory is not free.
        """
        async with self._change_to("wake_up"):
            if self._is_asleep:
                try:
                    await self._alive_through("woke up", self._engine.wake_up())
                except EngineDied:
                    raise
                except Exception as error:  # vLLM raises a bare Exception for every error of a worker
                    raise RunFailed(
                        f"the engine cannot wake up, since its part of the GPU is not free ({first_line(error)}); "
                        "lower rollout.engine.gpu_memory_utilization, or end what else uses the GPU"
                    ) from error
                self._is_asleep = False

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Return [T - 1] the log-probability (nats, temperature 1) of each of the T tokens but the first.

        Raises:
            EngineDied: the engine process died.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        request = str(next(self._request_ids))
        steps: Any = ()
        try:
            async for reply in self._engine.generate(TokensPrompt(prompt_token_ids=list(token_ids)), params, request):
                steps = reply.prompt_logprobs or steps
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine died while it scored request {request}") from error
        return tuple(step[token].logprob for step, token in zip(steps[1:], token_ids[1:], strict=True))

    async def decoding_gap(self, token_ids: Sequence[int]) -> float:
        """Return the mean difference (nats) between the scores of sampled tokens and of the same in a prompt.

        The first half of the T tokens is continued by as many sampled ones. Decoding has kernels, CUDA graphs and
        features of its own, none of which `score` uses; at temperature 1 without top-p both report the same numbers.

        Raises:
            EngineDied: the engine process died.
        """
        prompt = list(token_ids[: max(1, len(token_ids) // 2)])
        length = max(1, len(token_ids) - len(prompt))
        sampling = Sampling(num_samples=1, temperature=1.0, top_p=1.0, max_response_tokens=length)
        (sample,) = await self.sample(prompt, sampling, seed=0)
        scored = (await self.score([*prompt, *sample.token_ids]))[len(prompt) - 1 :]
        return fmean(abs(ours - theirs) for ours, theirs in zip(scored, sample.logprobs, strict=True))

    @asynccontextmanager
    async def _change_to(self, change: str) -> AsyncGenerator[None]:
        """Make one change of the engine at a time; heartbeats name it."""
        async with self._changing:
            self._change = change
            yield

    async def _alive_through(self, what: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Await a call into the engine process.

        Raises:
            EngineDied: the process died meanwhile.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._unless_dead(work)
        except (EngineDeadError, EngineDied) as error:
            raise EngineDied(f"the vLLM engine died while it {what}") from error

    async def _unless_dead(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await calls into the engine process; vLLM would wait forever if the process died meanwhile.

        Raises:
            EngineDied: the engine process died.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=DEATH_POLL_S)
                if not task.done():
                    self.check_alive()
            return task.result()
        finally:
            task.cancel()

    async def _take(self, update: WeightUpdate) -> WeightReceipt:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if isinstance(update.source, WeightGroup) and update.source != self._group:
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(asdict(update)))
            self._group = update.source
        return await self._replace_weights(update)

    async def _replace_weights(self, update: WeightUpdate) -> WeightReceipt:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        paused = time.monotonic()
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest(asdict(update)))
        await self._engine.finish_weight_update(weight_version=str(update.version))
        engine: Any = self._engine
        found: list[list[dict[str, Any]]] = await engine.collective_rpc("weight_records")
        first, *others = found
        if any(records != first for records in others):
            raise ValueError(f"the {1 + len(others)} workers of the engine read different contents; use one host")
        self._policy_version = update.version  # before the first token of the new weights can arrive
        await self._engine.resume_generation()
        return WeightReceipt(
            version=update.version,
            tensors=tuple(TensorRecord.of(record) for record in first),
            pause_s=time.monotonic() - paused,
        )

    def shutdown(self) -> None:
        """End the engine process, and delete the engine, whose destructor would fail at the end of the interpreter."""
        self._engine.shutdown()
        self._guardian.communicate()
        del self._engine, self._core

    @asynccontextmanager
    async def _ending(self, request: str, timeout_s: float | None) -> AsyncGenerator[None]:
        """End a request at its timeout, or when the block is left by an error.

        vLLM's own clean-up finds a request only after all of its samples are queued; this one ends those that are.
        """
        timer = None if timeout_s is None else asyncio.create_task(self._end_after(request, timeout_s))
        try:
            yield
        except BaseException:
            await self._engine.abort(request)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _end_after(self, request: str, timeout_s: float) -> None:
        """Abort a request after its timeout, repeatedly, because samples may be queued after the first abort."""
        await asyncio.sleep(timeout_s)
        while True:
            await self._engine.abort(request)
            await asyncio.sleep(ABORT_AGAIN_S)


def _sample(output: Any) -> Sample:
    """Convert an output of vLLM; an aborted one has met its deadline, as other aborted outputs are never read."""
    spans = output.weight_versions or ()
    return Sample(
        token_ids=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs) if output.logprobs else (),
        finish_reason="deadline" if output.finish_reason == "abort" else str(output.finish_reason),
        versions=tuple((span.start, "0" if span.version == UNLABELLED else span.version) for span in spans),
    )
