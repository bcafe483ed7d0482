"""Curves in Weights & Biases: offline unless WANDB_API_KEY is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curriculum.metric import Metrics

WANDB_PROJECT = "qwenlong-l1"


class WandbTracker:
    """One wandb run for each run folder; a resumed run continues it."""

    def __init__(self, *, name: str, directory: Path, recipe: dict[str, Any]) -> None:
        import wandb

        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run = wandb.init(
            project=WANDB_PROJECT,
            name=name,
            id=directory.name.replace("/", "-"),
            resume="allow",
            dir=str(directory),
            config=recipe,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the metrics of one step."""
        self._run.log(metrics, step=step)

    def finish(self) -> None:
        """Send what is left, and close the run."""
        self._run.finish()
