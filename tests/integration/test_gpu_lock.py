"""A fresh machine can install the lock file for GPUs: tried without downloading a package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")


@pytest.mark.skipif(UV is None, reason="uv is not installed; make setup installs it")
def test_the_gpu_lock_installs_on_every_supported_python():
    tried = subprocess.run(
        ["make", "-s", "lock-check", f"UV={UV}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if "Failed to fetch" in tried.stdout:
        pytest.skip("the package index cannot be reached")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.splitlines() == [f"requirements-gpu.lock resolves on Python 3.{minor}" for minor in (11, 12)]
