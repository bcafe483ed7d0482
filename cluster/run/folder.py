"""The folder of a run: recipe, metrics, events, trajectories, checkpoints, model, summary."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cluster.run.failed_start import clear_failed_start, is_failed_start
from curriculum.errors import UserError
from curriculum.files import begin_folder, file_errors, finish_folder, lock_file, write_text

COMPLETE = "COMPLETE"
"""Marker that is written last into a checkpoint; a checkpoint without it is ignored."""


class RunFolder:
    """Paths and writes; every write is atomic or a single line."""

    def __init__(self, path: Path) -> None:
        """Take an existing folder; see `create` and `open`."""
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create a new folder that only its owner can read, or take that of a start that failed before its first step.

        Raises:
            UserError: something else is there already, or it cannot be created.
        """
        with file_errors(f"run folder {path}", "written"):
            if path.exists() and not path.is_dir():
                raise UserError(f"run folder {path}: is a file; choose a folder with --run-dir")
            if path.is_dir() and any(path.iterdir()) and not is_failed_start(path):
                raise UserError(
                    f"run folder {path}: exists and is not empty; continue it with --resume {path}, "
                    "or choose another with --run-dir"
                )
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(path.resolve())

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing folder for a resume.

        Raises:
            UserError: it is not a run folder.
        """
        with file_errors(f"--resume {path}", "read"):
            is_run = (path / "recipe.yaml").is_file()
        if not is_run:
            raise UserError(f"--resume {path}: no recipe.yaml there; give the folder of an earlier run")
        return cls(path.resolve())

    def locked(self) -> IO[bytes]:
        """Lock the folder until the file that is returned is closed, or this process dies.

        Raises:
            UserError: another process is writing this run.
        """
        busy = f"run folder {self.path}: another process is training in it; wait for it or choose another folder"
        return lock_file(self.path / ".lock", busy=busy)

    def clear(self) -> None:
        """Remove what a failed start left; call it while the folder is locked, before anything is written.

        Raises:
            UserError: there is more than a failed start leaves, or it cannot be removed.
        """
        with file_errors(f"run folder {self.path}", "written"):
            if not is_failed_start(self.path):
                raise UserError(f"run folder {self.path}: is no longer empty; choose another with --run-dir")
            clear_failed_start(self.path)

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
        """The reference policy of a KL penalty; exists only if the recipe asks for one."""
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

    def rejects(self, key: str) -> Path:
        """Refused rows of the data of a recipe key, one JSON object each; absent if there are none."""
        return self.path / f"rejects-{key}.jsonl"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        _append(self.path / "metrics.jsonl", record)

    def append_event(self, event: str, **fields: Any) -> None:
        """Add one line to events.jsonl: the time (seconds since the epoch), the kind, and its fields."""
        _append(self.path / "events.jsonl", {"time": round(time.time(), 3), "event": event, **fields})

    def write_json(self, path: Path, value: Any) -> None:
        """Replace a JSON file atomically."""
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    # ---- checkpoints

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def begin_checkpoint(self, step: int) -> Path:
        """Create an empty folder to write a checkpoint into; it counts only after `finish_checkpoint`."""
        return begin_folder(self._checkpoint(step))

    def finish_checkpoint(self, partial: Path, step: int, keep_last: int) -> Path:
        """Mark a checkpoint as complete, give it its name, and remove all but the newest `keep_last`."""
        with file_errors(partial, "written"):
            (partial / COMPLETE).touch()
        finish_folder(self._checkpoint(step))
        for old in self._complete_checkpoints()[:-keep_last]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
        return self._checkpoint(step)

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        return next(reversed(self._complete_checkpoints()), None)

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def _complete_checkpoints(self) -> list[Path]:
        return sorted(path.parent for path in self.checkpoints.glob(f"step-*/{COMPLETE}"))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with file_errors(path, "written"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
