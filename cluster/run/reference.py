"""The reference policy of a run: a model in its folder, or in a storage and named there; whole, proved and sealed."""

from __future__ import annotations

from pathlib import Path

from curriculum.digest import Digests
from curriculum.files import DiskError, begin_folder, discard_folder, finish_folder, partial_of, remove_folder
from curriculum.seal import COMPLETE, Damaged, check_files, part_of, remove_elsewhere, seal, send_elsewhere
from curriculum.shared_folder import PATIENCE_S, SharedFolder

_MODEL = "model"
"""The part of the folder that lies in a storage."""


class Reference:
    """Written once, by rank 0 of the learner, and read by all ranks."""

    def __init__(self, path: Path, *, storage: str | None) -> None:
        """Take its folder, and the storage where the model goes, if there is one."""
        self.path = path
        self._storage = storage

    @property
    def is_whole(self) -> bool:
        """Whether it has been written."""
        return (self.path / COMPLETE).exists()

    @property
    def place(self) -> SharedFolder:
        """Where the ranks read it."""
        place = part_of(self.path, _MODEL)
        return place if place.url != str(self.path / _MODEL) else SharedFolder(str(self.path))

    def begin(self) -> SharedFolder:
        """Return where rank 0 is to write it.

        Raises:
            UserError: nothing can be written there.
        """
        self.discard()
        if self._storage is None:
            return SharedFolder(str(self.path))
        partial = begin_folder(self.path)
        send_elsewhere(partial, _MODEL, self._storage, f"{self.path.parent.name}/{self.path.name}")
        place = part_of(partial, _MODEL)
        place.make()
        return place

    def finish(self, written: Digests) -> None:
        """Read what rank 0 has written, and seal it.

        Raises:
            DiskError: a file is not here as it was written.
            UserError: it cannot be sealed.
        """
        folder, prefix = (self.path, "") if self._storage is None else (partial_of(self.path), f"{_MODEL}/")
        written = {f"{prefix}{name}": digest for name, digest in written.items()}
        try:
            check_files(folder, written, patience_s=PATIENCE_S)
        except Damaged as error:
            raise DiskError(
                f"{self.path}: {error}, although rank 0 has written it; give a folder that every node sees with "
                "--run-dir, or set checkpoint.storage"
            ) from error
        seal(folder, written)
        if self._storage is not None:
            finish_folder(self.path, first=remove_elsewhere)

    def discard(self) -> None:
        """Remove what is not whole.

        Raises:
            UserError: a storage refuses.
        """
        remove_elsewhere(partial_of(self.path))
        discard_folder(self.path)
        if self.path.exists() and not self.is_whole:
            remove_folder(self.path, first=remove_elsewhere)
