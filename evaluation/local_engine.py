"""Answers from a vLLM engine in this process."""

from __future__ import annotations

from actors.engine import VLLMEngine
from actors.faults import EngineDied
from actors.model_folder import context_length
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from actors.trajectory import FinishReason
from curriculum.errors import UserError
from evaluation.config import EngineModel, SamplingConfig
from evaluation.generator import Completion, GeneratorDown
from evaluation.prompts import Prompt


class LocalEngine:
    """One engine; samples of the same prompt share its cached prefix."""

    def __init__(self, config: EngineModel, sampling: SamplingConfig) -> None:
        """Load the model; block until it can answer.

        Raises:
            UserError: the model cannot hold prompt and response.
        """
        needed = sampling.max_prompt_tokens + sampling.max_response_tokens
        check_length(config, needed)
        self._prompt = ChatPrompt(
            load_tokenizer(config.model, trust_remote_code=config.trust_remote_code),
            template_arguments=config.template_arguments,
        )
        self._sampling = Sampling(
            num_samples=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_response_tokens=sampling.max_response_tokens,
        )
        self._engine = VLLMEngine(
            config.model,
            config.engine,
            max_model_len=needed,
            stop_token_ids=self._prompt.stop_token_ids,
            seed=sampling.seed,
            on_gpu=config.on_gpu,
            trust_remote_code=config.trust_remote_code,
            yarn=config.yarn,
        )

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """Sample one answer.

        Raises:
            GeneratorDown: the engine process ended.
        """
        try:
            (sample,) = await self._engine.sample(prompt.token_ids.tolist(), self._sampling, seed=seed)
        except EngineDied as error:
            raise GeneratorDown(f"{error}; run the same command again, it continues where it stopped") from error
        return Completion(
            text=self._prompt.decode(sample.token_ids),
            num_tokens=len(sample.token_ids),
            is_truncated=sample.finish_reason == FinishReason.LENGTH,
        )

    async def close(self) -> None:
        """End the engine process."""
        self._engine.shutdown()


def check_length(config: EngineModel, needed: int) -> None:
    """Raise a UserError where a model holds fewer than `needed` tokens, its rope scaling included."""
    positions = context_length(config.model, key="MODEL", trust_remote_code=config.trust_remote_code, yarn=config.yarn)
    if positions is not None and needed > positions:
        raise UserError(
            f"MODEL={config.model!r}: prompt and response need {needed} tokens, it holds {positions}; lower "
            "--max-input or --max-output, or extend its rope with --yarn"
        )
