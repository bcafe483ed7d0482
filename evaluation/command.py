"""The commands `qwenlong eval` and `qwenlong distill`: from their options to a configuration and a report."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actors.config import EngineConfig, YarnConfig
from actors.model_folder import folder_or_hub_id
from curriculum.cells import decoded
from curriculum.config import checked
from curriculum.errors import UserError
from evaluation.config import (
    DistillConfig,
    EndpointGenerator,
    EvaluationConfig,
    ExcludedSet,
    GeneratorConfig,
    RayGenerator,
    SamplingConfig,
    VllmGenerator,
)
from evaluation.progress import Progress
from reward.chat_endpoint import NoReplyError, endpoint_root, is_url, served_models
from reward.config import RewardConfig
from reward.judge_back_end import gpu_is_there

CPU_KV_CACHE_BYTES = 1 << 30
OPTIONS = {
    "max_prompt_tokens": "--max-input", "max_response_tokens": "--max-output", "num_samples": "--samples",
    "temperature": "--temperature", "top_p": "--top-p", "seed": "--seed", "max_in_flight": "--concurrency",
    "control": "--control", "num_replicas": "--replicas", "tensor_parallel_size": "--tensor-parallel",
}  # fmt: skip
"""Option of the command line by the key of a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that both commands have, as they were typed."""

    model: str
    """Folder, hub id or URL."""
    model_name: str | None
    """Model behind the URL."""
    tokenizer: str | None
    replicas: int
    """0: in this process; more: in this many Ray actors."""
    tensor_parallel: int
    device: str
    """`auto`: a GPU where this machine has one."""
    num_samples: int
    max_input: int
    max_output: int
    temperature: float
    top_p: float
    seed: int
    max_items: int | None
    concurrency: int
    reward: RewardConfig
    template: Sequence[str] | None
    """Arguments of the chat template, KEY=VALUE."""
    request: Sequence[str] | None
    """Further fields of every request to a URL, KEY=VALUE."""
    trust_remote_code: bool
    yarn: str | YarnConfig | None
    """YaRN on the model: FACTOR:TOKENS as it was typed, or that of a recipe."""

    @classmethod
    def of(cls, values: Mapping[str, Any], reward: RewardConfig) -> Options:
        """Take the options out of the arguments of a command."""
        given: dict[str, Any] = {**values, "reward": reward}
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def evaluation_config(
    options: Options,
    *,
    sources: Sequence[str],
    behaviours: str,
    exclude: Sequence[ExcludedSet] = (),
    control: Sequence[str] = (),
) -> EvaluationConfig:
    """Return the configuration of `qwenlong eval` for the model of the options.

    Raises:
        UserError: there is no such model, or an option cannot be used.
    """
    more = {"exclude": tuple(exclude), "control": tuple(dict.fromkeys(control))}
    return checked(EvaluationConfig, OPTIONS, **_common(options, sources), behaviours=behaviours, **more)


def run_evaluation(config: EvaluationConfig, *, out: Path | None, quiet: bool) -> None:
    """Evaluate one model; write the report to standard output and into the folder."""
    from evaluation.evaluate import evaluate

    folder = out or default_folder("eval", config.generator.model)
    progress = Progress(quiet=quiet)
    progress.say(f"answers, scores and report: {folder}")
    evaluate(config, out=folder, progress=progress)
    sys.stdout.write((folder / "report.md").read_text(encoding="utf-8"))


def run_distillation(
    options: Options, *, sources: list[str], out: Path | None, max_kept: int, max_total: int, quiet: bool
) -> None:
    """Run `qwenlong distill`; write the data card to standard output and into the folder."""
    from evaluation.distill import distill

    common = _common(options, sources)
    config = checked(DistillConfig, OPTIONS, **common, max_kept=max_kept, max_total_tokens=max_total)
    folder = out or default_folder("distill", config.generator.model)
    progress = Progress(quiet=quiet)
    progress.say(f"answers, demonstrations and data card: {folder}")
    distill(config, out=folder, progress=progress)
    sys.stdout.write((folder / "data_card.md").read_text(encoding="utf-8"))


def generator_config(options: Options, *, on_gpu: bool) -> GeneratorConfig:
    """Return what answers: an endpoint for a URL, Ray replicas where some are asked for, else this process.

    Raises:
        UserError: there is no such model, or the options contradict each other.
    """
    if is_url(options.model):
        return _endpoint(options)
    given = (("--model-name", options.model_name), ("--tokenizer", options.tokenizer), ("--request", options.request))
    for name, value in given:
        if value is not None:
            raise UserError(f"{name} {value}: only where MODEL is a URL; {options.model} has its own")
    cpu: dict[str, Any] = {"dtype": "fp32", "enforce_eager": True, "cpu_kv_cache_bytes": CPU_KV_CACHE_BYTES}
    common: dict[str, Any] = {
        "model": folder_or_hub_id(options.model, key="MODEL", others="a URL, "),
        "engine": checked(
            EngineConfig, OPTIONS, tensor_parallel_size=options.tensor_parallel, **({} if on_gpu else cpu)
        ),
        "on_gpu": on_gpu,
        "trust_remote_code": options.trust_remote_code,
        "template_arguments": _assigned(options.template, "--template"),
        "yarn": _yarn(options.yarn),
    }
    if options.replicas:
        return checked(RayGenerator, OPTIONS, **common, num_replicas=options.replicas)
    return checked(VllmGenerator, OPTIONS, **common)


def endpoint_model(url: str) -> str:
    """Return the only model that an endpoint serves.

    Raises:
        UserError: it does not answer, or serves none or several.
    """
    try:
        names = served_models(url)
    except NoReplyError as error:
        raise UserError(
            f"{url}: it does not tell which models it serves ({error}); check the URL or give --model-name"
        ) from error
    if len(names) != 1:
        raise UserError(f"{url}: it serves {', '.join(names) or 'no model'}; choose one with --model-name")
    return names[0]


def _endpoint(options: Options) -> EndpointGenerator:
    if options.replicas or options.tensor_parallel > 1 or options.yarn:
        raise UserError(
            f"--replicas, --tensor-parallel and --yarn: not with a URL; {options.model} runs its own engines"
        )
    url = endpoint_root(options.model)
    model = options.model_name or endpoint_model(url)
    return checked(
        EndpointGenerator,
        base_url=url,
        model=model,
        tokenizer=folder_or_hub_id(options.tokenizer or model, key="--tokenizer"),
        trust_remote_code=options.trust_remote_code,
        request_fields=_request_fields(options),
    )


def _yarn(given: str | YarnConfig | None) -> YarnConfig | None:
    """Read FACTOR:TOKENS.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(given, str):
        return given
    factor, colon, tokens = given.partition(":")
    if not colon:
        raise UserError(f"--yarn {given!r:.80}: expected FACTOR:TOKENS, for example 4:32768")
    return checked(
        YarnConfig,
        {"factor": "--yarn FACTOR", "original_max_tokens": "--yarn TOKENS"},
        factor=factor,
        original_max_tokens=tokens,
    )


def _request_fields(options: Options) -> dict[str, Any]:
    fields = _assigned(options.request, "--request")
    template = _assigned(options.template, "--template")
    return {**fields, "chat_template_kwargs": template} if template else fields


def _assigned(texts: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Read KEY=VALUE texts; a value is JSON, or text where it is none.

    Raises:
        UserError: a text has no key or no equals sign.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UserError(f"{option} {text!r:.80}: expected KEY=VALUE, for example enable_thinking=false")
        found[key] = decoded(value)
    return found


def _common(options: Options, sources: Sequence[str]) -> dict[str, Any]:
    on_gpu = gpu_is_there()
    return {
        "generator": generator_config(options, on_gpu=on_gpu if options.device == "auto" else options.device == "cuda"),
        "sources": tuple(sources),
        "sampling": checked(
            SamplingConfig,
            OPTIONS,
            max_prompt_tokens=options.max_input,
            max_response_tokens=options.max_output,
            temperature=options.temperature,
            top_p=options.top_p,
            num_samples=options.num_samples,
            seed=options.seed,
        ),
        "reward": options.reward,
        "max_items": options.max_items,
        "max_in_flight": options.concurrency,
    }


def default_folder(kind: str, model: str) -> Path:
    """Return a new folder below evaluations/ that is called after a model or a run."""
    name = re.sub(r"[^\w.-]+", "-", model.rstrip("/").rpartition("/")[2]).strip(".-") or "model"
    return Path("evaluations") / f"{kind}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
