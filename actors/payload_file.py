"""A weight payload as a file that the engine's worker processes on this host can read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def payload_file(payload: NDArray[np.uint8]) -> Iterator[str]:
    """Path of a temporary file with the payload, in shared memory where that has room; removed at the end."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * payload.nbytes
    handle, path = tempfile.mkstemp(prefix="qwenlong-weights-", dir=SHARED_MEMORY if roomy else None)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload.data)
        yield path
    finally:
        os.unlink(path)
