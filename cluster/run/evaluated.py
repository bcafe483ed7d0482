"""`qwenlong eval` of a run: its models in the order of its stages, its rewards, its data, its held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from actors.model_folder import context_length, folder_or_hub_id
from cluster.recipe.config import RunConfig
from cluster.recipe.load import load_recipe
from cluster.recipe.rewards import rewards
from curriculum.config import DataConfig, DemonstrationSource, GeneratedJudgePairs
from curriculum.errors import UserError
from curriculum.files import expanded, file_errors
from evaluation.command import Options, default_folder, evaluation_config, run_evaluation
from evaluation.config import ExcludedSet
from evaluation.exclusion import excluded_sets
from evaluation.progress import Progress
from evaluation.stages import StageModel, evaluate_stages
from reward.chat_endpoint import is_url
from reward.config import RewardConfig

MAX_INPUT, MAX_OUTPUT = 120_000, 10_000
"""Tokens of the paper's evaluation."""


def evaluate_command(values: Mapping[str, Any]) -> None:
    """Run `qwenlong eval` with its options, given by their names.

    Raises:
        UserError: model, data, option or folder cannot be used.
        RunFailed: a model gives no answer.
    """
    run = _run_of(values["model"])
    sources = list(values["benchmarks"] or [_heldout_questions(run)])
    more: dict[str, Any] = {
        "sources": sources,
        "behaviours": values["behaviours"],
        "exclude": excluded_sets(values["exclude"] or (), sources, () if run is None else _training_sets(run)),
        "control": values["control"] or (),
    }
    out, quiet = values["out"], values["quiet"]
    if run is None or not run.is_named:
        limits = {"max_input": values["max_input"] or MAX_INPUT, "max_output": values["max_output"] or MAX_OUTPUT}
        options = Options.of({**values, **limits}, _rewards(values, None))
        run_evaluation(evaluation_config(options, **more), out=out, quiet=quiet)
        return
    progress = Progress(quiet=quiet)
    config, reward = load_recipe(run.recipe), _rewards(values, run.recipe)
    models = models_of(run.path, config, progress.say)
    limits, yarn = _limits(values, config, models[-1].path), values["yarn"] or config.model.yarn
    stages = [
        (stage, evaluation_config(Options.of({**values, **limits, "model": stage.path, "yarn": yarn}, reward), **more))
        for stage in models
    ]
    evaluate_stages(stages, run=run.path.name, out=out or default_folder("eval", str(run.path)), progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The run that a model comes from."""

    path: Path
    is_named: bool
    """Whether the run folder itself is named, not one of its models."""

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"


def models_of(run: Path, config: RunConfig, say: Callable[[str], None]) -> list[StageModel]:
    """Return the models of a run: the base, that of every stage in order, and the best one, as far as they are there.

    Raises:
        UserError: the run has none.
    """
    names = (["sft"] if config.sft.epochs else []) + [phase.name for phase in config.curriculum.phases]
    folders = {name: run / "models" / name for name in names}
    if not folders[names[-1]].is_dir():
        folders[names[-1]] = run / "model"
    found: list[StageModel] = []
    for number, (name, folder) in enumerate(folders.items(), start=1):
        if folder.is_dir():
            found.append(StageModel(label=f"after {name}", path=str(folder), folder=f"{number}-{_safe(name)}"))
        else:
            say(f"after {name}: no model at {folder}; it is left out")
    if not found:
        raise UserError(
            f"{run}: holds no model (models/, model/); finish a stage with `qwenlong train --resume {run}`, or make a "
            "model of a checkpoint with `qwenlong export`"
        )
    if (best := run / "models" / "best").is_dir():
        found.append(StageModel(label="best", path=str(best), folder=f"{len(names) + 1}-best"))
    try:
        base = folder_or_hub_id(config.model.path, key="model.path")
        model = config.model
        context_length(base, key="model.path", trust_remote_code=model.trust_remote_code, yarn=model.yarn)
    except UserError as error:
        say(f"base: left out ({error.lines[0]})")
        return found
    return [StageModel(label="base", path=base, folder="0-base"), *found]


def _run_of(model: str) -> _Run | None:
    """Return the run whose folder is named, or one of whose models is; None for any other model."""
    if is_url(model):
        return None
    with file_errors(f"MODEL={model!r}", "read"):
        path = expanded(model, name=f"MODEL={model!r}").absolute()
        places = [path, path.parent] if path.name == "model" else [path]
        places += [path.parent.parent] if path.parent.name == "models" else []
        for place in places:
            if (place / "recipe.yaml").is_file() and (place / "events.jsonl").is_file():
                return _Run(path=place, is_named=place == path)
    return None


def _heldout_questions(run: _Run | None) -> str:
    if run is None:
        raise UserError("BENCHMARK is missing; name at least one, for example: qwenlong eval MODEL docmath")
    path = run.path / "heldout" / "questions.jsonl"
    if not path.is_file():
        raise UserError(f"{run.path}: it has no held-out questions ({path.relative_to(run.path)}); name a BENCHMARK")
    return str(path)


def _training_sets(run: _Run) -> tuple[ExcludedSet, ...]:
    """Return what the models of a run are trained on."""
    try:
        config = load_recipe(run.recipe)
    except UserError as error:
        name = f"training data of {run.path.name}"
        return (ExcludedSet(name=name, source=str(run.recipe), is_required=False, fault=error.lines[0]),)
    data = config.data
    form = DataConfig(columns=data.columns, prompt=data.prompt, markers=data.markers)
    given: tuple[tuple[Literal["data.train", "data.sft"], DemonstrationSource | None], ...] = (
        ("data.train", data.train if config.curriculum.phases else None),
        ("data.sft", data.sft if config.sft.epochs else None),
    )
    return tuple(
        ExcludedSet(name=f"{key} of {run.path.name}", key=key, source=source, form=form, is_required=False)
        for key, source in given
        if source is not None and not isinstance(source, GeneratedJudgePairs)
    )


def _rewards(values: Mapping[str, Any], own: Path | None) -> RewardConfig:
    names = ("rules", "judge", "judge_model", "thinking")
    return rewards(values["recipe"] or own, values["keys"], **{name: values[name] for name in names})


def _limits(values: Mapping[str, Any], config: RunConfig, model: str) -> dict[str, int]:
    """Return the longest prompt and response: the paper's and the recipe's, as far as the models hold them."""
    max_output = values["max_output"] or config.max_response_tokens
    positions = context_length(model, key="MODEL", trust_remote_code=values["trust_remote_code"])
    room = MAX_INPUT if positions is None else min(MAX_INPUT, positions - max_output)
    return {"max_input": values["max_input"] or max(1, room), "max_output": max_output}


def _safe(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
