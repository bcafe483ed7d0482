"""Rewards for a command without a run: those of a recipe, with the keys and options of the command in their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from actors.model_folder import folder_or_hub_id
from cluster.recipe.faults import explain_faults
from cluster.recipe.load import apply_overrides, load_recipe
from curriculum.config import StrictModel
from curriculum.errors import UserError
from reward.config import RewardConfig, VllmJudge
from reward.judge_back_end import judge_config


class _Rewards(StrictModel):
    """A recipe of nothing but rewards."""

    reward: RewardConfig = RewardConfig()


def rewards_of_run(
    source: Path, recipe: Path | None, keys: Sequence[str] | None, *, judge: str | None, judge_model: str | None
) -> RewardConfig:
    """Return what answers of a run are compared with: the rewards of its recipe, without its judge; see `rewards`.

    Of a source that is no run folder, or with a recipe of the command, it is that of `rewards`.
    """
    own = source / "recipe.yaml"
    if recipe is None and own.is_file():
        return rewards(own, keys, judge=judge or "none", judge_model=judge_model)
    return rewards(recipe, keys, judge=judge, judge_model=judge_model)


def rewards(
    recipe: Path | None,
    keys: Sequence[str] | None,
    *,
    rules: str | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    thinking: Literal["optional", "required"] | None = None,
) -> RewardConfig:
    """Return what scores the answers of a command.

    Args:
        recipe: its section `reward` is the base; None is that of an empty recipe.
        keys: overrides below `reward`, as `kinds.mydata=numeric`; they come last.
        rules: name of a rule set; None leaves it.
        judge: "none", the URL of an endpoint, or a model; None leaves it.
        judge_model: name of the model behind that URL.
        thinking: None leaves it.

    Raises:
        UserError: recipe, key, rules or judge cannot be used.
    """
    base = RewardConfig() if recipe is None else load_recipe(recipe).reward
    section = base.model_dump(mode="json")
    if rules is not None:
        section["rules"] = rules
    if thinking is not None:
        section["thinking"] = thinking
    if judge is not None or judge_model is not None:
        section["judge"] = judge_config(judge or "none", model=judge_model).model_dump(mode="json")
    values: dict[str, Any] = {"reward": section}
    apply_overrides(values, [f"reward.{key}" for key in keys or ()])
    try:
        config = _Rewards.model_validate(values).reward
    except ValidationError as error:
        raise UserError(*explain_faults(error, values)) from error
    if not isinstance(config.judge, VllmJudge):
        return config
    model = folder_or_hub_id(config.judge.model, key="reward.judge.model")
    return config.model_copy(update={"judge": config.judge.model_copy(update={"model": model})})
