"""Options of the commands that work on a recipe or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, for example recipes/local.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example learner.learning_rate=1e-6 seed=3."),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
MaybeRecipe = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE]", help="What is to run there.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")]

RecipeOrOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A YAML recipe and overrides. With --resume the recipe may be left out: that of the run is used.",
    ),
]
RunDir = Annotated[
    Path | None, typer.Option(help="New folder of the run. Default: runs/NAME-DATE-TIME.", show_default=False)
]
Resume = Annotated[
    Path | None,
    typer.Option(help="Folder of an earlier run, to continue from its last checkpoint.", show_default=False),
]
Step = Annotated[
    int | None,
    typer.Option(min=1, help="With --resume: from the checkpoint of this step, not the newest.", show_default=False),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="With --resume: a key or section that may change the numbers of the run."),
]
