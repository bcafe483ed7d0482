"""The folder of a run: recipe, metrics, events, trajectories, checkpoints, model, summary."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPLETE = "COMPLETE"
"""Marker written last into a checkpoint; without it the checkpoint does not exist."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and appends; every write is atomic or a single line."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Makes a new folder.

        Raises:
            FileExistsError: something is there already.
        """
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"run folder {path}: is a file; choose a folder with --run-dir")
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(
                f"run folder {path}: exists and is not empty; continue it with --resume {path}, "
                "or choose another with --run-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path.resolve())

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens an existing folder for a resume.

        Raises:
            FileNotFoundError: it is not a run folder.
        """
        if not (path / "recipe.yaml").is_file():
            raise FileNotFoundError(f"--resume {path}: no recipe.yaml there; give the folder of an earlier run")
        return cls(path.resolve())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out for the length of a block; the lock of a process that died is free.

        Raises:
            FileExistsError: another process is writing this run.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(
                    f"run folder {self.path}: another process is training in it; wait for it or choose another folder"
                ) from None
            yield

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The trained model, a Hugging Face folder."""
        return self.path / "model"

    @property
    def reference(self) -> Path:
        """The policy that a KL penalty is measured against; there only when the recipe asks for one."""
        return self.path / "reference"

    @property
    def summary(self) -> Path:
        """The result, written at the end."""
        return self.path / "summary.json"

    @property
    def trajectories(self) -> Path:
        """One parquet file per training step."""
        return self.path / "trajectories"

    @property
    def logs(self) -> Path:
        """The driver's log, and a link to those of the actors."""
        return self.path / "logs"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        _append(self.path / "metrics.jsonl", record)

    def append_event(self, event: str, **fields: Any) -> None:
        """Adds one line to events.jsonl: the time (seconds since the epoch), the kind, and its fields."""
        _append(self.path / "events.jsonl", {"time": round(time.time(), 3), "event": event, **fields})

    def write_json(self, path: Path, value: Any) -> None:
        """Replaces a JSON file atomically."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)

    # checkpoints

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into; it counts only after `finish_checkpoint`."""
        partial = self.checkpoints / f".step-{step:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish_checkpoint(self, partial: Path, step: int, keep_last: int) -> Path:
        """Marks a checkpoint as complete, gives it its name, and removes the oldest beyond `keep_last`."""
        (partial / COMPLETE).touch()
        final = self.checkpoints / f"step-{step:06d}"
        replaced = self.checkpoints / f".step-{step:06d}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in self._complete_checkpoints()[:-keep_last]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
        return final

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(reversed(self._complete_checkpoints()), None)

    def _complete_checkpoints(self) -> list[Path]:
        return sorted(path.parent for path in self.checkpoints.glob(f"step-*/{COMPLETE}"))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
