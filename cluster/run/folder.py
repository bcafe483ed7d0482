"""The folder of a run: recipe, metrics, events, trajectories, checkpoints, model, summary."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from cluster.run.checkpoints import Checkpoint, Checkpoints
from cluster.run.failed_start import clear_failed_start, is_failed_start
from cluster.run.json_lines import JsonLines
from curriculum.errors import UserError
from curriculum.files import clear_leftovers, file_errors, lock_file, remove_folder, write_text
from curriculum.seal import Damaged, check_seal, remove_elsewhere


class RunFolder:
    """Paths and writes; every write is atomic or a single line."""

    def __init__(self, path: Path) -> None:
        """Take an existing folder; see `create` and `open`."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._events = JsonLines(path / "events.jsonl")
        self._quarantine = JsonLines(path / "quarantine.jsonl")

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
            self.checkpoints.mend()
            clear_leftovers(self.path, first=remove_elsewhere)
            remove_elsewhere(self.reference)
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
    def models(self) -> Path:
        """The models of the ends of the stages and of the best step."""
        return self.path / "models"

    @property
    def model_files(self) -> Path:
        """What each of these models has besides its weights, taken from the base model when the run started."""
        return self.path / "model_files"

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
    def heldout(self) -> Path:
        """The held-out questions, and one parquet file per evaluation of them."""
        return self.path / "heldout"

    @property
    def logs(self) -> Path:
        """The driver's log, and a link to those of the actors."""
        return self.path / "logs"

    @property
    def _lines(self) -> tuple[JsonLines, ...]:
        return self._metrics, self._events, self._quarantine

    def rejects(self, key: str) -> Path:
        """Refused rows of the data of a recipe key, one JSON object each; absent if there are none."""
        return self.path / f"rejects-{key}.jsonl"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; on a full disk it waits for `write_waiting`."""
        self._metrics.append(record)

    def append_quarantined(self, record: Mapping[str, Any]) -> None:
        """Add one line to quarantine.jsonl."""
        self._quarantine.append(record)

    def append_event(self, event: str, **fields: Any) -> None:
        """Add one line to events.jsonl: the time (seconds since the epoch), the kind, and its fields.

        On a full disk it waits for `write_waiting`.
        """
        self._events.append({"time": round(time.time(), 3), "event": event, **fields})

    def write_waiting(self) -> None:
        """Write the lines that found the disk full.

        Raises:
            DiskFull: there is still no room for them; they go on waiting.
            UserError: they cannot be written for any other reason.
        """
        for lines in self._lines:
            lines.flush()

    def sync_lines(self) -> None:
        """Return when all lines so far are on disk; raises as `write_waiting` does."""
        for lines in self._lines:
            lines.sync()

    def mend(self, say: Callable[[str], None]) -> None:
        """Remove what writers that died left: unfinished last lines, files and folders without their names.

        Raises:
            UserError: something cannot be read or removed.
        """
        for lines in self._lines:
            if done := lines.repair():
                say(done)
        for path in (self.path, self.trajectories, self.heldout, self.models):
            clear_leftovers(path, first=remove_elsewhere)
        self.checkpoints.mend()
        model = self.model.resolve()
        clear_leftovers(model.parent, model.name)

    def check_reference(self, checkpoint: Checkpoint | None, say: Callable[[str], None]) -> None:
        """Read the reference policy; remove a damaged one where the run goes on from before it was written.

        Raises:
            UserError: it is damaged, and the checkpoint needs it.
        """
        if not self.reference.exists():
            return
        try:
            check_seal(self.reference, say)
        except Damaged as error:
            if checkpoint is not None and checkpoint.progress.learner_stage == "rl":
                raise UserError(
                    f"{self.reference}: damaged ({error}), and training measures the KL against it; put it back from a "
                    "copy, or go on with --step from a checkpoint of the warm-up, which writes it again"
                ) from error
            say(f"{self.reference.name} is damaged: {error}; it will be written again")
            remove_folder(self.reference, first=remove_elsewhere)

    def write_json(self, path: Path, value: Any) -> None:
        """Replace a JSON file atomically."""
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
