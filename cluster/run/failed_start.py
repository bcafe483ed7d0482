"""A run folder whose start failed before the first step: it holds no result, and the mended command begins it anew."""

from __future__ import annotations

import shutil
from pathlib import Path

_BEFORE_THE_RECIPE = frozenset({".lock", ".recipe.yaml.partial"})
_OF_A_START = frozenset({"recipe.yaml", "events.jsonl", "logs", "wandb"})
"""What a start leaves that did not come to its first step; logs and events are kept."""
_STALE = ("rejects-*.jsonl", "reference", ".reference.partial", ".*.partial", ".*.replaced", "metrics.jsonl",
          "trajectories", "checkpoints", "heldout", "models", "model_files")  # fmt: skip
"""What belongs to the recipe of the failed start: refused rows, files of the base model, the reference policy, the
held-out questions with the answers of the base model, and what has nothing in it."""


_HELDOUT = b'"heldout/accuracy"'
"""In the line of metrics of an evaluation; the first one is written before the first step."""


def is_failed_start(path: Path) -> bool:
    """Return whether a folder is that of a run which ended before its first step; anything else in it is a result.

    Raises:
        OSError: it cannot be read.
    """
    names = {entry.name for entry in path.iterdir()}
    if not (path / "recipe.yaml").is_file():
        return names <= _BEFORE_THE_RECIPE
    stale = {entry.name for pattern in _STALE for entry in path.glob(pattern)}
    return names <= _BEFORE_THE_RECIPE | _OF_A_START | stale and not _has_steps(path)


def clear_failed_start(path: Path) -> None:
    """Remove what a failed start has left besides its logs and events; the caller holds the lock of the folder.

    Raises:
        OSError: it cannot be removed.
    """
    for pattern in _STALE:
        for entry in path.glob(pattern):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _has_steps(path: Path) -> bool:
    """Return whether a step was finished: a whole line of its metrics, an answer, or a checkpoint."""
    metrics = path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
    if any(line.endswith(b"\n") and _HELDOUT not in line for line in lines):
        return True
    return any(any((path / name).glob("[!.]*")) for name in ("trajectories", "checkpoints", "models"))
