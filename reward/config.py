"""Configuration of the reward: the rules, the judge behind them, and the shaping of overlong responses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from actors.config import EngineConfig
from curriculum.config import Seconds, StrictModel
from reward.endpoint_url import EndpointUrl
from reward.kind import AnswerKind

MAX_RETRIES = 3
"""Further attempts at an endpoint after a failed one, with exponential back-off."""
MAX_BACKOFF_S = 8.0
"""Longest pause between two attempts, whatever the endpoint asks for."""
MAX_FAILURES = 5
"""Failed attempts in a row that open the circuit: from then on every question is unknown at once."""


class RuleSet(StrEnum):
    """Named sets of rules."""

    STRICT = "strict"
    """Exact match after normalisation, as the paper describes it."""
    RELEASED = "released"
    """The released code's scores, to compare with published numbers; they reward junk, so no run trains on them."""


OWN_FIELDS = ("model", "messages", "temperature", "max_tokens", "stream", "n", "seed")
"""Fields of a request that are never taken from `request_fields`: they decide what is asked, and how."""


def check_request_fields(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return further fields of a request.

    Raises:
        ValueError: one of them would replace a field that is set here.
    """
    if taken := [name for name in fields if name in OWN_FIELDS]:
        raise ValueError(f"{', '.join(taken)} cannot be set here; leave out {', '.join(OWN_FIELDS)}")
    return fields


RequestFields = Annotated[dict[str, JsonValue], AfterValidator(check_request_fields)]


class NoJudge(StrictModel):
    """The rule alone decides."""

    type: Literal["none"] = "none"

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return "none"


class VllmJudge(StrictModel):
    """A judge model served by vLLM inside Ray actors."""

    type: Literal["vllm"] = "vllm"
    model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """Hugging Face id or folder; the default is the paper's judge (section 2.4)."""
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache; ignored on a CPU."""
    cpu_kv_cache_bytes: int = Field(default=256 << 20, gt=0)
    """KV cache of an engine that runs on a CPU."""
    max_concurrency: int = Field(default=256, gt=0, le=65536)
    """Questions in one engine step."""
    max_tokens: int = Field(default=512, gt=0)
    """Longest judgement, in tokens; one that is cut short before its verdict counts as unknown."""
    max_model_len: int = Field(default=8192, gt=0)
    """Prompt and judgement together, in tokens."""
    num_gpus: float = Field(default=1.0, ge=0, le=1024)
    """GPUs of one replica; a fraction shares the device, a whole number above 1 is its tensor-parallel size. Ignored on
    a CPU, and with `cluster.share_gpus`, where a judge has a part of an engine's GPU."""
    num_replicas: int = Field(default=1, gt=0, le=4096)
    """Judge actors, one engine each."""
    timeout_s: Seconds = 300.0
    """Longest wait for one question; after it the question counts as unknown."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the judge's chat template, for example {enable_thinking: false}."""

    @model_validator(mode="after")
    def _judgement_fits(self) -> Self:
        if self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"reward.judge.max_tokens={self.max_tokens} leaves no room for the prompt in "
                f"max_model_len={self.max_model_len}; lower max_tokens or raise max_model_len"
            )
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"reward.judge.num_gpus={self.num_gpus:g}: above 1 it must be a whole number; round it")
        return self

    def engine_config(self, *, on_gpu: bool) -> EngineConfig:
        """Return the settings of the engine: bf16 with captured graphs on GPUs, fp32 without compilation on a CPU."""
        return EngineConfig(
            tensor_parallel_size=max(1, int(self.num_gpus)) if on_gpu else 1,
            dtype="bf16" if on_gpu else "fp32",
            gpu_memory_utilization=self.gpu_memory_utilization,
            cpu_kv_cache_bytes=self.cpu_kv_cache_bytes,
            max_num_seqs=self.max_concurrency,
            enforce_eager=not on_gpu,
        )

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return f"vllm {self.model}"

    @property
    def cooldown_s(self) -> float:
        """How long an open circuit lets the engine rest before one question tries it again, in seconds."""
        return self.timeout_s / 2

    @property
    def deadline_s(self) -> float:
        """Longest wait for one question, in seconds."""
        return self.timeout_s


class OpenAIJudge(StrictModel):
    """A judge behind any OpenAI-compatible endpoint."""

    type: Literal["openai"] = "openai"
    base_url: EndpointUrl
    """Root of the API, for example http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """Name of the model, as the endpoint knows it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never part of a recipe."""
    max_tokens: int = Field(default=512, gt=0)
    """Longest judgement, in tokens."""
    timeout_s: Seconds = 60.0
    """Longest wait for one reply."""
    max_concurrency: int = Field(default=64, gt=0, le=65536)
    """Requests in flight at once."""
    request_fields: RequestFields = Field(default_factory=dict)
    """Further fields of every request, for example {chat_template_kwargs: {enable_thinking: false}}."""

    @property
    def name(self) -> str:
        """Identity of the judge in caches and reports."""
        return f"openai {self.base_url} {self.model}"

    @property
    def deadline_s(self) -> float:
        """Longest wait for one question, in seconds: all its attempts and pauses, and as long again for a free slot."""
        return 2 * ((MAX_RETRIES + 1) * self.timeout_s + MAX_RETRIES * MAX_BACKOFF_S)

    @property
    def cooldown_s(self) -> float:
        """How long an open circuit lets the endpoint rest before one question tries it again, in seconds."""
        return self.timeout_s / 2


JudgeConfig = Annotated[NoJudge | VllmJudge | OpenAIJudge, Field(discriminator="type")]


class OverlongConfig(StrictModel):
    """Soft penalty on long responses (paper Eq. 7)."""

    max_tokens: int | None = Field(default=None, gt=0)
    """L_max: the response length, in tokens, at which the penalty reaches -1. None is the response limit of the running
    phase."""
    cache_tokens: int = Field(gt=0)
    """L_cache: the penalty starts at L_max - L_cache tokens and grows linearly."""

    @model_validator(mode="after")
    def _cache_fits(self) -> Self:
        if self.max_tokens is not None and self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"reward.overlong.cache_tokens={self.cache_tokens} exceeds max_tokens={self.max_tokens}; "
                "lower cache_tokens"
            )
        return self


class RewardConfig(StrictModel):
    """How responses are scored."""

    rules: RuleSet = RuleSet.STRICT
    """`strict`: exact match after normalisation. `released`: the released code's scores, which no run trains on."""
    kinds: dict[str, AnswerKind] = Field(default_factory=dict)
    """Kind of the answers per data source (exact name), where the name alone would decide otherwise."""
    thinking: Literal["optional", "required"] = "optional"
    """`required`: a response without a closing tag has no answer; for models whose chat template opens the thinking
    in the prompt (DeepSeek-R1 distillations), so that an unfinished thought is never searched for an answer.
    `optional`: a response without any thinking tags is all answer."""
    thinking_tags: tuple[str, str] | None = None
    """Opening and closing tag of the model's thinking, where it is none of the known families (`<think>`, `<thinking>`,
    `<thought>`, `<reasoning>`, `[THINK]`, `<seed:think>`, `◁think▷`, harmony channels), which are always known."""
    judge: JudgeConfig = NoJudge()
    """Who decides about answers that the rule rejects."""
    max_outage_s: float = Field(default=1800.0, ge=0, le=365 * 24 * 3600)
    """How long a step that cannot be scored without the judge waits for it before the run is saved and stops."""
    overlong: OverlongConfig | None = None
    """None: rewards are accuracies."""
