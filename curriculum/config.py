"""Configuration of the curriculum, and the strict base class of every configuration in this project."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curriculum.errors import UserError, shortened


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; every configuration class derives from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=StrictModel)

Seconds = Annotated[float, Field(gt=0, le=365 * 24 * 3600)]
"""A time to wait: at most a year, since timers of libraries overflow beyond some centuries."""
MAX_SEED = 2**32 - 1
"""Largest seed of numpy, which engines are started with."""


def checked(kind: type[ModelT], options: Mapping[str, str] | None = None, /, **values: Any) -> ModelT:
    """Return a configuration that is made of options; a recipe has `cluster.recipe.load`.

    Args:
        kind: the configuration.
        options: option of the command line by its key, where it has one.
        values: values by key.

    Raises:
        UserError: one line for each value that cannot be used.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(*(_fault(fault, options or {}) for fault in error.errors())) from error


def dotted(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings, and lists of them, as one mapping from dotted key to value."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(cast("dict[str, Any]", node).items())
    elif isinstance(node, list):
        entries = cast("list[Any]", node)
        children = list(enumerate(entries)) if any(isinstance(entry, dict) for entry in entries) else []
    if not children:
        return {prefix: node}
    parts = [dotted(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in children]
    return {key: value for part in parts for key, value in part.items()}


def _fault(fault: Any, options: Mapping[str, str]) -> str:
    """One line; a fault of a whole configuration, which has no key of its own, speaks for itself."""
    message = fault["msg"].removeprefix("Value error, ")
    key = ".".join(options.get(part, str(part)) for part in fault["loc"])
    return f"{key}={shortened(repr(fault['input']), 80)}: {message[0].lower()}{message[1:]}" if key else message


class GeneratedData(StrictModel):
    """Documents and questions written by `curriculum.synthetic`; nothing is read from disk."""

    type: Literal["generated"] = "generated"
    items_per_length: int = Field(gt=0)
    """Number of items of each length range."""
    lengths: tuple[tuple[int, int], ...]
    """Length ranges of the documents, in words: inclusive (minimum, maximum) pairs."""


class GeneratedJudgePairs(StrictModel):
    """Pairs of answers and their verdicts, written by `curriculum.synthetic_judge`: demonstrations for a judge."""

    type: Literal["generated_judge_pairs"] = "generated_judge_pairs"
    num_items: int = Field(gt=0, le=10_000_000)
    """Number of pairs."""


DataSource = str | tuple[str, ...] | GeneratedData
"""A file, a glob, a folder, a hub id (`owner/name`, `owner/name:split`, `owner/name:configuration:split`), several of
these, or generated documents."""
DemonstrationSource = (
    str | tuple[str, ...] | Annotated[GeneratedData | GeneratedJudgePairs, Field(discriminator="type")]
)
"""The same, or generated pairs that train a judge."""
OurColumn = Literal[
    "id", "data_source", "context", "question", "answers", "answer", "response", "prompt", "messages", "reward_model"
]
"""Columns that a layout of the recipe's data reads."""


class Markers(StrictModel):
    """Where document and question lie in a prompt that is kept as it is: the texts before and behind each."""

    context: tuple[str, str] | None = None
    """The document lies between the first occurrence of the one text and the last one of the other; None: the column
    `context` holds it, if there is one."""
    question: tuple[str, str] | None = None
    """The question lies between these texts in the last message, outside of the document; an empty second text means
    up to the end. None: the column `question` holds it, if there is one."""


class DataConfig(StrictModel):
    """Where questions and demonstrations come from, and which of them are admitted."""

    train: DataSource | None = None
    """Questions for the reinforcement learning: a source, or a list of them ([data.md](data.md)); None
    where `curriculum.phases` is empty."""
    sft: DemonstrationSource | None = None
    """Demonstrations for the warm-up, likewise; None where `sft.epochs` is 0."""
    evaluation: DataSource | None = None
    """Held-out questions, likewise; those that leak from `train` or `sft` are left out
    ([evaluation.md](evaluation.md#leaks)). None turns the evaluations between stages off."""
    columns: dict[OurColumn, str] = {}
    """Names of columns that are called otherwise in the data, by our names: `{question: input}`; dots lead into nested
    ones (`reward_model.ground_truth`)."""
    prompt: Literal["paper", "keep"] = "paper"
    """`paper`: document and question are asked with the prompt of the paper. `keep`: the column `prompt` or `messages`
    is the prompt as it is, system prompt and earlier turns included; for questions, not for demonstrations."""
    markers: Markers = Markers()
    over_long: Literal["drop", "truncate_middle"] = "drop"
    """What happens to an item whose prompt is longer than the last phase admits."""
    unpayable: Literal["judge", "reject"] = "judge"
    """What happens to a question with accepted answers that no response can match by the rule of their kind ("twelve"
    as a number): the judge decides about all of its answers, or it is refused. Without a judge it is refused."""


class RetrospectiveConfig(StrictModel):
    """Replay of hard samples from earlier phases (paper section 2.3 and 3.2)."""

    selection: Literal["zero_accuracy", "difficulty"] = "zero_accuracy"
    """`zero_accuracy`: the tasks whose mean accuracy was zero at the transition, pass by pass, as the paper ran it.
    `difficulty`: every slot is drawn from all tasks of earlier phases that are not solved now, with a probability
    proportional to 1 / (mean accuracy + 1/8) (Eq. 10)."""
    difficulty: Literal["latest", "base", "transition"] = "latest"
    """The mean accuracy in the weights of `selection: difficulty`: of the latest visit; `base`: of one group per task
    under the model that the run starts from, sampled before the warm-up; `transition`: of the latest visit, where one
    group for each of the hardest 1,000 earlier tasks is sampled at every transition."""
    max_share: float = Field(default=0.25, ge=0, lt=1)
    """Largest share of replayed tasks in a batch."""

    @model_validator(mode="after")
    def _measures_what_it_uses(self) -> Self:
        if self.difficulty != "latest" and self.selection != "difficulty":
            raise ValueError(
                f"difficulty={self.difficulty} measures weights, and selection={self.selection} draws without any; set "
                "selection=difficulty or difficulty=latest"
            )
        return self


class FixedSteps(StrictModel):
    """The phase ends after a number of steps, those that found nothing to train on included."""

    type: Literal["steps"] = "steps"
    steps: int = Field(gt=0)
    """Training steps of the phase."""


class FixedEpochs(StrictModel):
    """The phase ends after so many groups for each of its tasks, on average; a fraction is allowed."""

    type: Literal["epochs"] = "epochs"
    epochs: float = Field(gt=0)
    """Groups / tasks of the phase."""
    of: Literal["sampled", "trained"] = "sampled"
    """Which groups count: `sampled`, the fresh ones that were sampled, with a signal or not, so that an epoch is a pass
    over the tasks; `trained`, those that were trained on, replayed ones included."""


class Plateau(StrictModel):
    """The phase ends when the smoothed accuracy stops improving, at the latest after `max_steps`."""

    type: Literal["plateau"] = "plateau"
    max_steps: int = Field(gt=0)
    """Steps after which the phase ends in any case."""
    patience: int = Field(default=10, gt=0)
    """Steps in a row without progress before the phase ends."""


PhaseEnd = Annotated[FixedSteps | FixedEpochs | Plateau, Field(discriminator="type")]


class PhaseConfig(StrictModel):
    """One phase: it trains on tasks with L_{k-1} < prompt tokens <= L_k (paper Eq. 9)."""

    name: str
    """Name of the phase in metrics, events and summaries; no two phases share one."""
    max_prompt_tokens: int = Field(gt=0)
    """L_k, counted on the whole prompt (template and chat tokens included)."""
    end: PhaseEnd
    """When the phase ends."""
    max_response_tokens: int | None = Field(default=None, gt=0)
    """Response limit of the phase; None keeps `rollout.max_response_tokens`."""


class CurriculumConfig(StrictModel):
    """Phases in order, replay, and the bound on sampling that finds nothing to train on."""

    phases: tuple[PhaseConfig, ...] = ()
    """Empty: no reinforcement learning, the run is a warm-up SFT only."""
    balance: Literal["none", "data_source"] = "none"
    """How fresh tasks are drawn: `none`, pass by pass over all tasks of the phase; `data_source`, from the data sources
    in turn, each in passes of its own, so that all have the same share (QwenLong-L1.5)."""
    retrospective: RetrospectiveConfig | None = RetrospectiveConfig()
    """Replay of hard tasks from earlier phases; None trains on fresh tasks only."""
    max_sampling_rounds: int = Field(default=10, gt=0)
    """Dynamic sampling: rounds of replacement groups for one batch before the batch is trained as it is; a step
    that finds no group with variance in all rounds trains nothing."""
    max_fruitless_steps: int = Field(default=3, gt=0)
    """Steps in a row that train nothing before the phase is closed and reported."""
    after_fruitless: Literal["next_phase", "stop"] = "next_phase"
    """What follows a phase that was closed because nothing in it could be trained on: the next phase, or a checkpoint
    and the end of the command, which `--resume` continues with the next phase."""

    @model_validator(mode="after")
    def _lengths_grow(self) -> Self:
        lengths = [phase.max_prompt_tokens for phase in self.phases]
        if any(a >= b for a, b in pairwise(lengths)):
            raise ValueError(f"phases must grow in max_prompt_tokens, got {lengths}; reorder or merge them")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phase names must differ, got {names}")
        return self
