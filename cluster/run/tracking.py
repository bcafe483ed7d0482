"""Curves in Weights & Biases: offline unless WANDB_API_KEY is set."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curriculum.errors import one_line
from curriculum.metric import Metrics

WANDB_PROJECT = "qwenlong-l1"


class WandbTracker:
    """One wandb run for each run folder; a resumed run continues it. Training does not end because curves do."""

    def __init__(self, *, name: str, directory: Path, recipe: dict[str, Any], say: Callable[[str], None]) -> None:
        """Open the wandb run; `say` is told once if wandb fails, and nothing is sent from then on."""
        self._say = say
        self._run: Any = None
        logging.raiseExceptions = False  # wandb's own log may be on a full disk; its tracebacks help no one
        with self._tolerated():
            self._run = _open(name, directory, recipe)

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the metrics of one step."""
        with self._tolerated():
            if self._run is not None:
                self._run.log(metrics, step=step)

    def finish(self) -> None:
        """Send what is left, and close the run."""
        with self._tolerated():
            if self._run is not None:
                self._run.finish()

    @contextmanager
    def _tolerated(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            self._say(f"wandb: {one_line(error)}; the run goes on without it, metrics.jsonl has all curves")


def _open(name: str, directory: Path, recipe: dict[str, Any]) -> Any:
    import wandb

    return wandb.init(
        project=WANDB_PROJECT,
        name=name,
        id=directory.name.replace("/", "-"),
        resume="allow",
        dir=str(directory),
        config=recipe,
        mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
        settings=wandb.Settings(silent=True, console="off"),
    )
