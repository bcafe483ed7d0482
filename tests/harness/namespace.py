"""Processes with disks of their own on this machine, as on another node of a cluster; for root on Linux only."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def hiding(folders: Mapping[Path, str], *command: object) -> list[str]:
    """The command, in a mount namespace of its own where an empty disk of a size hides each of these folders."""
    mounts = [f"mount -t tmpfs -o size={size} none {folder}" for folder, size in folders.items()]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *map(str, command)]


def seen_by(pid: int, folder: Path) -> list[str]:
    """Names of the files below a folder as a process sees it."""
    root = Path(f"/proc/{pid}/root") / folder.relative_to("/")
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def need_namespaces(folder: Path) -> None:
    """Skips the test where there are none."""
    if subprocess.run(hiding({folder: "1m"}, "true"), capture_output=True).returncode:
        pytest.skip("only root may give a process disks of its own")
