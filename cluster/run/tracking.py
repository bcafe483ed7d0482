"""Curves in Weights & Biases: offline unless WANDB_API_KEY is set."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from curriculum.errors import RunFailed, one_line
from curriculum.metric import Metrics

WANDB_PROJECT = "qwenlong-l1"
INIT_S = 30.0
"""Longest wait for the answer of wandb at the start."""
FINISH_S = 3.0
"""Longest wait for the upload when a run ends early; what is left is on disk."""


class WandbTracker:
    """One wandb run for each run folder; a resumed run continues it. Its faults never end a run."""

    def __init__(self, *, name: str, directory: Path, recipe: dict[str, Any], say: Callable[[str], None]) -> None:
        """Start a run of wandb, or go on with it.

        Args:
            name: shown in the dashboard.
            directory: where wandb keeps its files.
            recipe: shown with the curves.
            say: told once if wandb fails.

        Raises:
            RunFailed: wandb refuses.
        """
        import wandb

        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._wandb: Any = wandb
        self._directory = directory
        self._say = say
        self._has_failed = False
        try:
            self._run = wandb.init(
                project=WANDB_PROJECT,
                name=name,
                id=directory.name.replace("/", "-"),
                resume="allow",
                dir=str(directory),
                config=recipe,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_S),
            )
        except (wandb.Error, OSError) as error:
            raise RunFailed(
                f"tracking.wandb: {one_line(error)}; unset WANDB_API_KEY to keep the curves here, or set "
                "tracking.wandb=false"
            ) from error

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the metrics of one step."""
        if not self._has_failed:
            with self._tolerant():
                self._run.log(metrics, step=step)

    def finish(self, *, within_s: float | None = None) -> None:
        """Send what is left, for at most so many seconds, and close the run."""
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(within_s)
        if closing.is_alive():
            self._note(f"not everything was sent within {within_s:g} s")
            for pid in _services():
                os.kill(pid, signal.SIGKILL)  # what it has received is on disk
            closing.join()

    def _close(self) -> None:
        with self._tolerant():
            if not self._has_failed:
                self._run.finish()
        with contextlib.suppress(Exception, SystemExit):
            self._wandb.teardown()  # else wandb does it when the process ends, with a traceback if it fails

    @contextlib.contextmanager
    def _tolerant(self) -> Generator[None]:
        """Turn whatever wandb raises into one line, the first time."""
        try:
            yield
        except Exception as error:
            self._note(one_line(error))

    def _note(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._say(
                f"tracking.wandb: {reason}; the curves are in metrics.jsonl, and `wandb sync` sends what is in "
                f"{self._directory / 'wandb'}"
            )


def _services() -> list[int]:
    """Return the process ids of wandb's service, a child of this process."""
    lists = [tasks.read_text().split() for tasks in Path("/proc/self/task").glob("*/children")]
    children = [int(pid) for pids in lists for pid in pids]
    return [pid for pid in children if "wandb" in Path(f"/proc/{pid}/comm").read_text()]
