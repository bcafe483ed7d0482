"""The models that a run leaves: of the ends of its stages, of its best step, and the final one.

Each is made from a checkpoint and says in its card from which one. So what is missing can be told, and made up, at any
time: after a kill between a checkpoint and its model, or on a run that goes on from an earlier checkpoint.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cluster.recipe.config import KeepConfig, RunConfig
from cluster.run.checkpoints import Checkpoint
from cluster.run.folder import RunFolder
from cluster.run.model_card import checkpoint_of, model_card
from cluster.run.progress import Progress
from cluster.run.stopping import Interrupted
from curriculum.files import begin_folder, discard_folder, file_errors, finish_folder
from curriculum.seal import Damaged

BEST = "best"
"""Name of the model of the best step."""

Export = Callable[[Checkpoint, Path, str, Callable[[], None]], None]
"""Writes the model of a checkpoint into a folder, with a card; calls the last argument often, which may raise."""


def kept_steps(progress: Progress, keep: KeepConfig) -> dict[str, int]:
    """Return the steps whose checkpoints stay whatever comes later, by the names of their models."""
    kept = progress.stage_ends if keep.stages else {}
    if progress.best is not None and progress.best.metric == keep.best:
        kept = {**kept, BEST: progress.best.step}
    return kept


class Models:
    """The folder `models/` of a run, and its `model`."""

    def __init__(self, folder: RunFolder, config: RunConfig, export: Export, say: Callable[[str], None]) -> None:
        """Take the run folder and its recipe, what writes a model, and who is told of those that cannot be made."""
        self._folder = folder
        self._config = config
        self._export = export
        self._say = say
        self._told: set[str] = set()

    def missing(self, progress: Progress) -> Iterator[tuple[Path, Checkpoint]]:
        """Yield the models of the run that are not there, or are of another checkpoint, with their checkpoints.

        Args:
            progress: of a checkpoint that has just been written or proved.
        """
        for name, step in kept_steps(progress, self._config.checkpoint.keep).items():
            path = self._folder.models / name
            try:
                checkpoint = self._folder.checkpoints.at(step, prove=False)
                if checkpoint_of(path) == checkpoint.digest:
                    continue
                if step != progress.step:
                    checkpoint = self._folder.checkpoints.at(step, prove=True, say=self._say)
            except Damaged as error:
                if name not in self._told:
                    self._say(f"models/{name}: not made, checkpoint of step {step}: {error}")
                self._told.add(name)
                continue
            yield path, checkpoint

    def final(self, progress: Progress) -> Iterator[tuple[Path, Checkpoint]]:
        """Yield `model` with the newest checkpoint, unless it is made from it already."""
        checkpoint = self._folder.checkpoints.at(progress.step, prove=False)
        if checkpoint_of(self._folder.model) != checkpoint.digest:
            yield self._folder.model, checkpoint

    async def make(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write the model of a checkpoint, in a thread; whoever stops waiting for it gives it up.

        Raises:
            DiskError: it cannot be written.
        """
        given_up = threading.Event()

        def keep_going() -> None:
            if given_up.is_set():
                raise Interrupted

        writing = asyncio.ensure_future(asyncio.to_thread(self._make, path, checkpoint, keep_going))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            given_up.set()
            with suppress(Exception):
                await writing
            raise

    def _make(self, path: Path, checkpoint: Checkpoint, keep_going: Callable[[], None]) -> None:
        """Link or copy a model of the same checkpoint; write one where there is none."""
        twins = [twin for twin in (*self._folder.models.glob("[!.]*"), self._folder.model) if twin != path]
        twin = next((twin for twin in twins if checkpoint_of(twin) == checkpoint.digest), None)
        if twin is None:
            card = model_card(self._config, checkpoint, run=self._folder.path.name, files=self._folder.model_files)
            self._export(checkpoint, path, card, keep_going)
        else:
            _link_folder(twin, path)


def _link_folder(source: Path, path: Path) -> None:
    """Give a folder the files of another one: the same files where the disk can do that, copies elsewhere.

    Raises:
        DiskError: it cannot be written.
    """
    partial = begin_folder(path)
    try:
        with file_errors(path, "written"):
            for entry in source.iterdir():
                if entry.is_file():
                    _link(entry, partial / entry.name)
        finish_folder(path)
    except BaseException:
        discard_folder(path)
        raise


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, path)


def export_model(
    checkpoint: Checkpoint,
    path: Path,
    card: str,
    keep_going: Callable[[], None],
    *,
    folder: RunFolder,
    config: RunConfig,
) -> None:
    """Write the model of a checkpoint of a run; see `export_checkpoint`.

    Raises:
        UserError: something cannot be read or written.
    """
    from learner.export import export_checkpoint

    export_checkpoint(
        checkpoint.learner,
        folder.model_files,
        path,
        card=card,
        trust_remote_code=config.model.trust_remote_code,
        keep_going=keep_going,
    )
