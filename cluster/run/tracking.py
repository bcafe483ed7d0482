"""Curves in Weights & Biases: offline unless a key is present."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curriculum.metric import Metrics

WANDB_PROJECT = "qwenlong-l1"


class WandbTracker:
    """One wandb run per run folder; a resumed run goes on in the same one."""

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
        """The metrics of one step."""
        self._run.log(metrics, step=step)

    def finish(self) -> None:
        """Flushes and closes."""
        self._run.finish()
