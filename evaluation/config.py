"""Configuration of an evaluation or a distillation: the model that answers, its sampling, and the judge."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from actors.config import EngineConfig, YarnConfig
from curriculum.config import MAX_SEED, DataConfig, DemonstrationSource, Seconds, StrictModel
from curriculum.controls import Control
from reward.config import RequestFields, RewardConfig
from reward.endpoint_url import EndpointUrl


class EngineModel(StrictModel):
    """A model that vLLM loads."""

    model: str
    """Hugging Face folder or hub id."""
    engine: EngineConfig = EngineConfig()
    on_gpu: bool = True
    """Whether an engine takes GPUs; with Ray the machine that starts the evaluation may have none itself."""
    trust_remote_code: bool = False
    """Run code that ships with the model; off unless asked for."""
    yarn: YarnConfig | None = None
    """YaRN on the rope of the model; None leaves it as the folder has it."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the model's chat template, for example {enable_thinking: false}."""

    @property
    def tokenizer(self) -> str:
        """Folder or hub id of the tokenizer that measures prompts."""
        return self.model


class VllmGenerator(EngineModel):
    """One engine, inside this process."""

    type: Literal["vllm"] = "vllm"


class RayGenerator(EngineModel):
    """The same engine in several Ray actors."""

    type: Literal["ray"] = "ray"
    num_replicas: int = Field(default=1, gt=0, le=4096)


class EndpointGenerator(StrictModel):
    """A model behind any OpenAI-compatible endpoint."""

    type: Literal["openai"] = "openai"
    base_url: EndpointUrl
    """Root of the API, for example http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    tokenizer: str
    """Folder or hub id of the tokenizer that measures prompts; it should be the model's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout_s: Seconds = 1800.0
    """Longest wait for one answer."""
    max_retries: int = Field(default=3, ge=0)
    """Further attempts after a failed one, with exponential back-off."""
    request_fields: RequestFields = Field(default_factory=dict)
    """Further fields of every request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    max_backoff_s: Seconds = 30.0
    trust_remote_code: bool = False


GeneratorConfig = Annotated[VllmGenerator | RayGenerator | EndpointGenerator, Field(discriminator="type")]


def template_arguments(generator: GeneratorConfig) -> dict[str, JsonValue]:
    """Return the arguments of the chat template, which an endpoint is sent among the fields of its requests."""
    if not isinstance(generator, EndpointGenerator):
        return generator.template_arguments
    found = generator.request_fields.get("chat_template_kwargs")
    return found if isinstance(found, dict) else {}


class SamplingConfig(StrictModel):
    """How answers are drawn; the defaults are those of the paper's evaluation."""

    max_prompt_tokens: int = Field(default=120_000, gt=0, lt=2**31)
    """Longest prompt; a longer document loses its middle."""
    max_response_tokens: int = Field(default=10_000, gt=0, lt=2**31)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    num_samples: int = Field(default=1, gt=0, le=16384)
    """Answers to each question."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)


class ExcludedSet(StrictModel):
    """A set that models are trained on: questions that leak from it are left out of an evaluation."""

    name: str
    """As reports show it."""
    key: Literal["--exclude", "data.train", "data.sft"] = "--exclude"
    """Option or recipe key that names it; what `data.sft` holds are demonstrations."""
    source: DemonstrationSource
    form: DataConfig = DataConfig()
    """How its rows are read: `columns`, `prompt` and `markers`."""
    benchmark: str | None = None
    """The only benchmark that is compared with it; None compares all."""
    is_required: bool = True
    """Whether a set that cannot be read ends the command; otherwise it is told, and the benchmarks are marked."""
    fault: str | None = None
    """Why it is not compared, where that is known beforehand."""


class EvaluationConfig(StrictModel):
    """One evaluation."""

    generator: GeneratorConfig
    sources: tuple[str, ...]
    """Names of published benchmarks, or `[NAME=]FILE` or `[NAME=]OWNER/DATASET[:SPLIT]`."""
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = RewardConfig()
    max_items: int | None = Field(default=None, gt=0)
    """Items of each benchmark that are asked, the first ones; None asks all."""
    max_in_flight: int = Field(default=64, gt=0, le=65536)
    """Answers that are generated at the same time."""
    behaviours: Literal["patterns", "judge"] = "patterns"
    """What counts reasoning behaviours: patterns, or the judge's model."""
    exclude: tuple[ExcludedSet, ...] = ()
    """Training sets whose questions are left out."""
    control: tuple[Control, ...] = ()
    """How every question is asked besides: without its document, with that of another question."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not self.sources:
            raise ValueError("no benchmark is named; give at least one name, file or hub id")
        if self.behaviours == "judge" and self.reward.judge.type == "none":
            raise ValueError("behaviours=judge needs a judge; give --judge URL or MODEL, or use patterns")
        return self


class DistillConfig(StrictModel):
    """Limits of what becomes a demonstration; the defaults fit the paper's warm-up data (Table 3)."""

    generator: GeneratorConfig
    sources: tuple[str, ...]
    """Questions: files or hub ids."""
    sampling: SamplingConfig = SamplingConfig(max_prompt_tokens=18_000, num_samples=4)
    reward: RewardConfig = RewardConfig()
    max_items: int | None = Field(default=None, gt=0)
    max_in_flight: int = Field(default=64, gt=0, le=65536)
    max_kept: int = Field(default=1, gt=0)
    """Demonstrations of one question."""
    max_total_tokens: int = Field(default=20_000, gt=0)
    """Longest prompt and response together."""
    min_response_tokens: int = Field(default=32, ge=0)
    max_foreign_share: float = Field(default=0.05, ge=0, le=1)
    """Largest share of letters of a script that neither document nor question uses."""
    max_repetition: float = Field(default=0.3, ge=0, le=1)
    """Largest share of the response's 8-grams that repeat an earlier one."""
    min_grounding: float = Field(default=0.5, ge=0, le=1)
    """Smallest grounding precision of a response that quotes or paraphrases at least three passages."""

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if not self.sources:
            raise ValueError("no questions are named; give at least one file or hub id")
        if self.sampling.max_prompt_tokens > self.max_total_tokens:
            raise ValueError(
                f"max_prompt_tokens={self.sampling.max_prompt_tokens} exceeds max_total_tokens="
                f"{self.max_total_tokens}: such demonstrations would all be refused; lower --max-input"
            )
        return self
