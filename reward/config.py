"""Configuration of the reward: the rules, the judge behind them, and the shaping of overlong responses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from actors.config import EngineConfig
from curriculum.config import StrictModel
from reward.kind import AnswerKind


class RuleSet(StrEnum):
    """Named sets of rules."""

    STRICT = "strict"
    """Exact match after normalisation, as the paper describes it."""
    RELEASED = "released"
    """The released code's scores, to compare with published numbers; they reward junk, so no run trains on them."""


class NoJudge(StrictModel):
    """The rule alone decides."""

    type: Literal["none"] = "none"

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return "none"


class JudgeEngineConfig(EngineConfig):
    """Resources of a judge's engine; by default it leaves half of a GPU to others."""

    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache; ignored on a CPU."""


class VllmJudge(StrictModel):
    """A judge model served by vLLM inside Ray actors."""

    type: Literal["vllm"] = "vllm"
    model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """Hugging Face id or folder; the default is the paper's judge (section 2.4)."""
    engine: JudgeEngineConfig = JudgeEngineConfig()
    max_tokens: int = Field(default=512, gt=0)
    """Longest judgement, in tokens; one that is cut short before its verdict counts as unknown."""
    max_model_len: int = Field(default=8192, gt=0)
    """Prompt and judgement together, in tokens."""
    num_gpus: float = Field(default=1.0, ge=0)
    """GPUs of one replica; a fraction shares the device."""
    num_replicas: int = Field(default=1, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for one question; after it the question counts as unknown."""

    @model_validator(mode="after")
    def _judgement_fits(self) -> Self:
        if self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"reward.judge.max_tokens={self.max_tokens} leaves no room for the prompt in "
                f"max_model_len={self.max_model_len}; lower max_tokens or raise max_model_len"
            )
        if 1 < self.engine.tensor_parallel_size != self.num_gpus:
            raise ValueError(
                f"reward.judge.num_gpus={self.num_gpus:g} but engine.tensor_parallel_size="
                f"{self.engine.tensor_parallel_size}; set num_gpus to the same number"
            )
        return self

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return f"vllm {self.model}"

    @property
    def deadline_s(self) -> float:
        """Longest wait for one question, in seconds."""
        return self.timeout_s


class OpenAIJudge(StrictModel):
    """A judge behind any OpenAI-compatible endpoint."""

    type: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s/]+")
    """Root of the API, for example http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never part of a recipe."""
    max_tokens: int = Field(default=512, gt=0)
    """Longest judgement, in tokens."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for one reply."""
    max_retries: int = Field(default=3, ge=0)
    """Further attempts after a failed one, with exponential back-off."""
    max_backoff_s: float = Field(default=8.0, gt=0)
    """Longest pause between two attempts, whatever the endpoint asks for."""
    max_concurrency: int = Field(default=64, gt=0)
    """Requests in flight at once."""
    max_failures: int = Field(default=5, gt=0)
    """Failed attempts in a row that open the circuit: from then on every question is unknown at once."""
    cooldown_s: float = Field(default=30.0, ge=0)
    """Seconds that a circuit stays open before one question tries the endpoint again."""

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return f"openai {self.base_url} {self.model}"

    @property
    def deadline_s(self) -> float:
        """Longest wait for one question, in seconds: all its attempts and pauses, and as long again for a free slot."""
        return 2 * ((self.max_retries + 1) * self.timeout_s + self.max_retries * self.max_backoff_s)


JudgeConfig = Annotated[NoJudge | VllmJudge | OpenAIJudge, Field(discriminator="type")]


class OverlongConfig(StrictModel):
    """Soft penalty on long responses (paper Eq. 7)."""

    max_tokens: int = Field(gt=0)
    """L_max: the response length, in tokens, at which the penalty reaches -1."""
    cache_tokens: int = Field(gt=0)
    """L_cache: the penalty starts at L_max - L_cache tokens and grows linearly."""

    @model_validator(mode="after")
    def _cache_fits(self) -> Self:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"reward.overlong.cache_tokens={self.cache_tokens} exceeds max_tokens={self.max_tokens}; "
                "lower cache_tokens"
            )
        return self


class RewardConfig(StrictModel):
    """How responses are scored."""

    rules: RuleSet = RuleSet.STRICT
    kinds: dict[str, AnswerKind] = Field(default_factory=dict)
    """Kind of the answers per data source (exact name), where the name alone would decide otherwise."""
    thinking: Literal["optional", "required"] = "optional"
    """`required`: a response without `</think>` has no answer; for models whose chat template opens the thinking
    in the prompt (DeepSeek-R1 distillations), so that an unfinished thought is never searched for an answer.
    `optional`: a response without any thinking tags is all answer."""
    judge: JudgeConfig = NoJudge()
    max_outage_s: float = Field(default=1800.0, ge=0)
    """How long a step that cannot be scored without the judge waits for it before the run is saved and stops."""
    overlong: OverlongConfig | None = None
    """None: rewards are accuracies."""
