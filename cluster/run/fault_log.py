"""The file that keeps the traceback of a fault of the program; the one line that is printed names it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from curriculum.printable import printable_lines


def write_fault_log(error: BaseException, run_folder: Path | None) -> Path:
    """Write command and traceback into a new file, and return its path.

    The file is in logs/ of the run folder, or a temporary one if there is no run folder that can be written to; it is
    the null device where nothing can be written.
    """
    text = printable_lines(f"{shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    name = f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    if run_folder is not None and (run_folder / "recipe.yaml").is_file():
        with suppress(OSError):
            return _write(run_folder / "logs" / name, text)
    with suppress(OSError):
        return _write(Path(tempfile.mkdtemp(prefix="qwenlong-")) / name, text)
    return Path(os.devnull)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
