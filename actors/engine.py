"""The vLLM engine: one process tree that samples answers and takes new weights."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, NoReturn

from actors.config import EngineConfig
from actors.rollout import Sample, Sampling
from actors.weights.update import (
    TensorRecord,
    WeightGroup,
    WeightLoadError,
    WeightReceipt,
    WeightUpdate,
    WeightVersionError,
)
from curriculum.errors import RunFailed, first_line

CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Needed where vLLM runs on a CPU: no thread pinning, and the executor inside the engine process."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TOKENIZERS_PARALLELISM": "false",
}


DTYPES: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16"}

UNLABELLED = "default"
"""Weight version of vLLM before the first update."""
ONLY_ENDS = 1 << 30
"""Tokens between two partial outputs of an answer: it is heard of at its first token and at its end."""
DEATH_POLL_S = 1.0
"""Between two looks at an engine process whose call takes long."""
ABORT_AGAIN_S = 1.0


class EngineDied(RuntimeError):
    """The engine process is gone; the actor around it must restart."""


class VLLMEngine:
    """vLLM's asynchronous engine behind the few verbs this project needs.

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
    ) -> None:
        """Loads the model; blocks until the engine can sample.

        Args:
            model_path: Hugging Face folder or hub id.
            config: resources of the engine.
            max_model_len: largest prompt plus response, in tokens.
            stop_token_ids: tokens that end an answer.
            seed: engine seed; every request carries its own as well.
            on_gpu: whether a GPU is visible.
            trust_remote_code: whether code that ships with the model may run.

        Raises:
            RunFailed: vLLM cannot serve the model on this machine.
        """
        set_environment(on_gpu=on_gpu)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.prefill_counter import PrefillCounter

        arguments = engine_arguments(
            model_path,
            config,
            max_model_len=max_model_len,
            seed=seed,
            on_gpu=on_gpu,
            trust_remote_code=trust_remote_code,
        )
        self._prefill = PrefillCounter()
        try:
            self._engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments), stat_loggers=[self._prefill.stat_logger()]
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise RunFailed(
                f"model {model_path!r}: vLLM cannot serve it here ({first_line(error)}); read what vLLM said above, or "
                "in the log of the actor"
            ) from error
        self._stop_token_ids = list(stop_token_ids)
        self._request_ids = itertools.count()
        self._updating = asyncio.Lock()
        self._policy_version = 0
        self._receipt: WeightReceipt | None = None
        self._group: WeightGroup | None = None

    @property
    def policy_version(self) -> int:
        """Number of weight updates applied since the base model."""
        return self._policy_version

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        num_tokens = self._engine.vllm_config.cache_config.kv_cache_size_tokens
        assert num_tokens is not None, "vLLM knows the size of its cache once it has started"
        return num_tokens

    @property
    def block_tokens(self) -> int:
        """Tokens of one block of the KV cache; what the samples of a group share is rounded down to it."""
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
        """Draws answers to one prompt in one request, so that the prompt is prefilled once; see `Engine.sample`.

        However this ends, by cancellation too, no part of the request is left in the engine.

        Raises:
            EngineDied: the engine process is gone.
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
        """Looks at the engine process.

        Raises:
            EngineDied: it is gone.
        """
        if self._engine.errored:
            raise EngineDied("the vLLM engine died")

    async def load_weights(self, update: WeightUpdate) -> WeightReceipt:
        """Replace all weights, by those of a segment or those that the learner is about to send; return what the
        workers handed to the model.

        Running requests are kept and continue under the new weights; cached prefixes of the old ones are dropped.
        Updates take turns, and one that the engine already holds is not loaded again. After an error generation stays
        paused, so that nothing is sampled from weights that are half old and half new.

        Raises:
            WeightVersionError: the update does not follow the weights of the engine.
            WeightLoadError: a tensor does not load or does not come, a parameter got none, or the workers of this
                engine disagree.
            EngineDied: the engine process is gone.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._updating:
            if self._receipt is None or update.version != self._receipt.version:
                _check_follows(self.policy_version, update.version)
                try:
                    self._receipt = await self._unless_dead(self._take(update))
                except (EngineDeadError, EngineDied) as error:
                    raise EngineDied(f"the vLLM engine died while it loaded weights {update.version}") from error
                except Exception as error:  # whatever a worker raises, vLLM passes on as a bare Exception
                    raise WeightLoadError(f"weights of version {update.version}: {error}") from error
            return self._receipt

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """[T - 1] log-probability (nats, temperature 1) of each of the T tokens after the first.

        Raises:
            EngineDied: the engine process is gone.
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

    async def _unless_dead(self, work: Coroutine[Any, Any, WeightReceipt]) -> WeightReceipt:
        """Awaits calls into the engine process, which vLLM never ends if the process dies under them.

        Raises:
            EngineDied: the engine process is gone.
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
        first, *others = await self._engine.collective_rpc("weight_records")
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
        """Ends the engine process, and lets go of the engine: its destructor fails at the end of the interpreter."""
        self._engine.shutdown()
        del self._engine

    @asynccontextmanager
    async def _ending(self, request: str, timeout_s: float | None) -> AsyncIterator[None]:
        """Ends a request at its timeout, and in any case when the block is left by an error.

        vLLM's own clean-up knows a request only once all of its samples are queued; this one finds those that are.
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
        """Again and again, for samples that were queued only after the timeout."""
        await asyncio.sleep(timeout_s)
        while True:
            await self._engine.abort(request)
            await asyncio.sleep(ABORT_AGAIN_S)


def set_environment(*, on_gpu: bool) -> None:
    """To be called before vLLM is imported."""
    os.environ.update(ENVIRONMENT if on_gpu else ENVIRONMENT | CPU_ENVIRONMENT)


def engine_arguments(
    model_path: str, config: EngineConfig, *, max_model_len: int, seed: int, on_gpu: bool, trust_remote_code: bool
) -> dict[str, Any]:
    """What vLLM is told of model and resources."""
    from vllm.config import WeightTransferConfig

    resources = _gpu_resources(config) if on_gpu else _cpu_resources(config, max_model_len)
    return {
        "model": model_path,
        "dtype": DTYPES[config.dtype],
        "seed": seed,
        "max_model_len": max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": "actors.weights.receiver.WeightReceiver",
        "weight_transfer_config": WeightTransferConfig(backend="learner"),
        "trust_remote_code": trust_remote_code,
        "disable_log_stats": True,
        **resources,
    }


def sampling_params(sampling: Sampling, *, seed: int, stop_token_ids: Sequence[int]) -> Any:
    """`vllm.SamplingParams` of one group: cumulative outputs without steps in between are as cheap as final ones, and
    partial answers are at hand."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=sampling.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_response_tokens,
        stop_token_ids=list(stop_token_ids),
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.CUMULATIVE,
        stream_interval=ONLY_ENDS,
    )


def _gpu_resources(config: EngineConfig) -> dict[str, Any]:
    return {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_num_batched_tokens": config.max_num_batched_tokens,
    }


def _cpu_resources(config: EngineConfig, max_model_len: int) -> dict[str, Any]:
    """Chunked prefill is off: vLLM 0.32 rewinds the generator of a seeded request after a chunk, which CPU cannot.

    Blocks are as small as the CPU kernels take them (vLLM's choice is 128): every sample of a group computes the last,
    incomplete block of its prompt again.
    """
    return {
        "block_size": 32,
        "kv_cache_memory_bytes": config.cpu_kv_cache_bytes,
        "distributed_executor_backend": "uni",
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, config.max_num_batched_tokens or 8192),
    }


def end_process() -> NoReturn:
    """Leaves at once and with an error, which Ray answers with a restart; a clean exit would be final."""
    sys.stderr.write(
        "error: the process of the vLLM engine died and this one ends with it; read what vLLM said above\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _check_follows(held: int, sent: int) -> None:
    """An engine that just started takes any version, later ones come one after the other."""
    if sent < held or 0 < held < sent - 1:
        kind = "past" if sent < held else "future"
        raise WeightVersionError(
            f"weights of version {sent} come from the {kind}: the engine holds version {held} and takes "
            f"{held + 1} next; resume from the last checkpoint"
        )


def _sample(output: Any) -> Sample:
    """As vLLM has it; an answer that was aborted can only have met its deadline, else nobody would read it."""
    spans = output.weight_versions or ()
    return Sample(
        token_ids=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs) if output.logprobs else (),
        finish_reason="deadline" if output.finish_reason == "abort" else str(output.finish_reason),
        versions=tuple((span.start, "0" if span.version == UNLABELLED else span.version) for span in spans),
    )
