"""A disk of its own for the run folders, small enough to fill."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

SIZE_MB = 256
BLOCK = bytes(1 << 16)


class SmallDisk:
    """A tmpfs, where this user may mount one; otherwise a plain folder, which cannot be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(path)]
        self.can_be_full = subprocess.run(command, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Take the filler away again."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.can_be_full:
            subprocess.run(["umount", str(self.path)], check=True)
