"""Options of the commands that score answers: the same keys as the section `reward` of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RewardRecipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Recipe whose rewards are used: kinds, thinking, rules and judge. Other options replace its keys.",
        show_default=False,
    ),
]
RewardKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="KEY=VALUE",
        help="Any key of the rewards, for example kinds.mydata=numeric or judge.max_tokens=2048.",
        show_default=False,
    ),
]
Rules = Annotated[
    Literal["strict", "released"] | None,
    typer.Option(help="strict (default): exact match; released: as in the published code.", show_default=False),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="none|URL|MODEL",
        help="Judge of answers that the rule rejects. Default: none.",
        show_default=False,
    ),
]
JudgeModel = Annotated[str | None, typer.Option(metavar="NAME", help="Model at the judge's URL.", show_default=False)]
Thinking = Annotated[
    Literal["optional", "required"] | None,
    typer.Option(
        help="required: a response without </think> has no answer (the chat template opens the thinking).",
        show_default=False,
    ),
]
