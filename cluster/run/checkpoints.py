"""The checkpoints of a run: written whole, kept up to a number, proved before they are read, set aside when left.

The folder of a checkpoint is always on the driver's disk. With `checkpoint.storage` the learner's part lies there, in a
folder of its own, which goes before the folder that names it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.recipe.config import RunConfig
from cluster.run.progress import Progress
from curriculum.coordinator import STATE_FORMAT
from curriculum.digest import Digests
from curriculum.errors import UserError, library_words
from curriculum.files import (
    DiskError,
    begin_folder,
    clear_leftovers,
    discard_folder,
    file_errors,
    finish_folder,
    partial_of,
    remove_folder,
    write_text,
)
from curriculum.seal import (
    COMPLETE,
    Damaged,
    OtherVersion,
    check_files,
    check_seal,
    part_of,
    remove_elsewhere,
    seal,
    send_elsewhere,
)
from curriculum.shared_folder import PATIENCE_S, SharedFolder

LEARNER = "learner"
"""The part of a checkpoint that the ranks of the learner write."""
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_ASIDE = re.compile(r"step-(\d{6,})\.aside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole, and what it says of the driver; the learner's part is in `learner`."""

    path: Path
    progress: Progress
    curriculum: dict[str, Any] | None
    """State of the coordinator; None in a run of a warm-up alone."""
    inputs: Mapping[str, str]
    """Digests of the data and the model that the run was trained with, by recipe key."""

    digest: str
    """Of its content: two checkpoints have the same one only if they are the same."""

    @property
    def learner(self) -> SharedFolder:
        """Folder that the learner's ranks read."""
        return part_of(self.path, LEARNER)

    def changed_inputs(self, config: RunConfig, inputs: Mapping[str, str], *, allowed: Collection[str]) -> list[str]:
        """Return the recipe keys whose data or model has another content now than when this was written.

        Args:
            config: names data and model, for the message.
            inputs: their digests now.
            allowed: keys and sections that may change.

        Raises:
            UserError: others have changed; one line for each.
        """
        changed = [key for key, digest in inputs.items() if self.inputs.get(key, digest) != digest]
        free = {key for key in changed for part in allowed if f"{key}.".startswith(f"{part}.")}
        refused = [f"{key}={reduce(getattr, key.split('.'), config)}" for key in changed if key not in free]
        if refused:
            raise UserError(
                "\n".join(
                    f"{name}: its content has changed since {self.path.name} of this run; bring the old one back, or "
                    f"accept the new one with --allow-change {name.partition('=')[0]}"
                    for name in refused
                )
            )
        return changed


class _State(BaseModel):
    """Content of `state.json`."""

    progress: Progress
    curriculum: dict[str, Any] | None
    inputs: dict[str, str]


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, path: Path) -> None:
        """Take the folder; it is made with the first checkpoint."""
        self.path = path

    def begin(self, step: int, *, storage: str | None = None) -> Path:
        """Create an empty folder to write a checkpoint into; it counts only after `finish`.

        Args:
            step: finished steps of the run.
            storage: URL of a storage, where the learner's part gets a folder of its own.

        Raises:
            UserError: it cannot be made.
        """
        self.discard(step)
        partial = begin_folder(self._of(step))
        if storage is not None:
            send_elsewhere(partial, LEARNER, storage, f"{self.path.parent.name}/{self._of(step).name}")
        part_of(partial, LEARNER).make()
        return partial

    def discard(self, step: int) -> None:
        """Remove what was written since `begin`, wherever it is.

        Raises:
            UserError: a storage refuses; the folder that names what is there is left for the next start.
        """
        remove_elsewhere(partial_of(self._of(step)))
        discard_folder(self._of(step))

    def mend(self) -> None:
        """Remove what a process that died was writing or removing.

        Raises:
            UserError: something cannot be removed.
        """
        clear_leftovers(self.path, first=remove_elsewhere)

    def finish(
        self,
        partial: Path,
        step: int,
        state: Mapping[str, Any],
        written: Digests,
        *,
        keep_last: int,
        keep_steps: Collection[int] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> Path:
        """Read what the ranks wrote, add the driver's part, seal the checkpoint and give it its name.

        All but the newest `keep_last` are removed then.

        Args:
            partial: the folder of `begin`, with the learner's part.
            step: finished steps of the run.
            state: the fields of `Checkpoint` as JSON values.
            written: size and digest of every file of the learner's part, as the ranks have told.
            keep_last: number of checkpoints that stay; those set aside go once the run has passed their step.
            keep_steps: steps of others that stay, if they are there.
            say: is told how far a long reading has come.

        Raises:
            DiskError: a file of a rank is not here as it was written.
            UserError: it cannot be written; the earlier ones are as they were.
        """
        self._prove(partial, step, written := {f"{LEARNER}/{name}": digest for name, digest in written.items()}, say)
        write_text(partial / _STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")
        seal(partial, written)
        finish_folder(self._of(step), first=remove_elsewhere)
        for number, old in list(self._numbered(_NAME).items())[:-keep_last]:
            if number not in keep_steps:
                remove_folder(old, first=remove_elsewhere)
        for passed, aside in self._numbered(_ASIDE).items():
            if passed <= step:
                remove_folder(aside, first=remove_elsewhere)
        return self._of(step)

    def _prove(self, partial: Path, step: int, written: Digests, say: Callable[[str], None]) -> None:
        """Check that every file that a rank wrote is here, whole and as it was written."""
        try:
            check_files(partial, written, say, patience_s=PATIENCE_S)
        except Damaged as error:
            raise DiskError(
                f"{self._of(step)}: {error}, although a rank has written it to {part_of(partial, LEARNER)}; give a "
                "folder that every node sees with --run-dir, or set checkpoint.storage"
            ) from error

    def newest(self) -> Path | None:
        """Return the newest checkpoint, whole or not; None without one."""
        return next(reversed(self._numbered(_NAME).values()), None)

    def choose(self, say: Callable[[str], None], *, step: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or that of a step; None if there is no checkpoint.

        Every file is read, before any process starts; call it again for the next start.

        Args:
            say: is told of every damaged checkpoint, and how far a long check has come.
            step: finished steps of the one that is wanted.

        Raises:
            UserError: none is whole, another version wrote them, or the wanted one is damaged or not there.
        """
        with file_errors(self.path, "read"):
            found = self._numbered(_NAME)
        if step is not None:
            return self._wanted(found, step, say)
        damage: list[str] = []
        for path in reversed(found.values()):
            try:
                checkpoint = _proved(path, say)
            except OtherVersion as error:
                raise UserError(f"{path}: {error}") from error
            except Damaged as error:
                damage.append(f"{path.name} is damaged: {error}")
                say(f"checkpoint {damage[-1]}")
                continue
            if damage:
                say(f"using {path.name}, the newest checkpoint that is whole")
            return checkpoint
        if damage:
            raise UserError(
                f"{self.path}: no checkpoint is whole ({'; '.join(damage)}); put one back from a copy, or remove this "
                "folder and use --resume, which then begins at the base model"
            )
        return None

    def at(self, step: int, *, prove: bool, say: Callable[[str], None] = lambda _: None) -> Checkpoint:
        """Return the checkpoint of a step.

        Args:
            step: finished steps.
            prove: read every file first; needless for one that has just been written or proved.
            say: is told how far a long check has come.

        Raises:
            Damaged: it is not there, or not what was written.
        """
        if prove:
            check_seal(self._of(step), say)
        return read_checkpoint(self._of(step))

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename the checkpoints of later steps, which a run that goes on from `step` has left; return their names."""
        aside: list[Path] = []
        for number, path in self._numbered(_NAME).items():
            if number > step:
                aside.append(path.with_name(f"{path.name}.aside"))
                with file_errors(path, "written"):
                    if aside[-1].exists():
                        remove_folder(aside[-1], first=remove_elsewhere)
                    path.rename(aside[-1])
        return aside

    def _wanted(self, found: Mapping[int, Path], step: int, say: Callable[[str], None]) -> Checkpoint:
        others = ", ".join(str(number) for number in found if number != step)
        way_out = f"choose another: {others}" if others else "there is no other"
        if step not in found:
            raise UserError(f"--step {step}: {self.path} has no checkpoint of that step; {way_out}")
        try:
            return _proved(found[step], say)
        except OtherVersion as error:
            raise UserError(f"--step {step}: {error}") from error
        except Damaged as error:
            raise UserError(f"--step {step}: {found[step].name} is damaged: {error}; {way_out}") from error

    def _of(self, step: int) -> Path:
        return self.path / f"step-{step:06d}"

    def _numbered(self, name: re.Pattern[str]) -> dict[int, Path]:
        """Return the folders of a kind of name by their step, in its order."""
        if not self.path.is_dir():
            return {}
        found = ((name.fullmatch(path.name), path) for path in self.path.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in found if match and path.is_dir()))


def _proved(path: Path, say: Callable[[str], None]) -> Checkpoint:
    """Read a checkpoint whose every file is the one that was written.

    Raises:
        OtherVersion: another version of the program wrote it.
        Damaged: a file is not, or does not say what a checkpoint must say.
    """
    check_seal(path, say)
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what a checkpoint says of the driver; its other files are not looked at.

    Raises:
        Damaged: it does not say what a checkpoint must say.
    """
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        digest = (path / COMPLETE).read_text(encoding="utf-8").strip()
        _check_format(state["curriculum"])
        progress = Progress.from_state_dict(state["progress"])
        name = f"step-{progress.step:06d}"
        _State.model_validate(state)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise Damaged(f"{_STATE}: {key}={fault['input']!r:.80}: {fault['msg']}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Damaged(f"{_STATE}: {library_words(error)}") from error
    if path.name != name:
        raise Damaged(f"{_STATE}: is of step {progress.step}")
    return Checkpoint(
        path=path, progress=progress, curriculum=state["curriculum"], inputs=state["inputs"], digest=digest
    )


def _check_format(curriculum: Mapping[str, Any] | None) -> None:
    """Refuse a state of the coordinator that it would refuse itself, but before any process starts."""
    if curriculum is not None and curriculum.get("format") != STATE_FORMAT:
        raise OtherVersion(f"its curriculum has the format {curriculum.get('format')!r:.40}, not {STATE_FORMAT}")
