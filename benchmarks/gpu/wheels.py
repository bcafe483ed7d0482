"""Collects the wheels that a machine with torch alone needs for one go: `python -m benchmarks.gpu.wheels FOLDER`.

Versions are those of requirements-gpu.lock. Torch is left out. DeepSpeed comes as sources and is built here,
without kernels of its own. For another Python than this one, `--python-version 3.12`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
NEEDED = ("deepspeed", "transformers", "numpy", "pydantic", "safetensors", "xxhash", "pytest", "pytest-timeout")
OF_SOURCES = ("deepspeed",)
"""Packages that come as sources alone."""
MAX_BYTES = 64 << 20


def closure(names: tuple[str, ...], without: str) -> set[str]:
    """The packages and all that they require, as far as they are installed here; nothing of `without`."""
    found: set[str] = set()
    pending = [canonicalize_name(name) for name in names]
    while pending:
        name = pending.pop()
        if name in found or name == without:
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(canonicalize_name(requirement.name))
    return found


def chosen() -> list[str]:
    """`name==version` of every wheel, sorted; torch is on the machine, perhaps with older versions of what it needs."""
    pins = dict(line.split("==") for line in (ROOT / "requirements-gpu.lock").read_text(encoding="utf-8").split())
    return [f"{name}=={pins[name]}" for name in sorted(closure(NEEDED, without="torch"))]


def main() -> int:
    """Exit status 0 if all wheels are there and small enough to be carried."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    options = parser.parse_args()
    requirements = chosen()
    sources = [line for line in requirements if line.split("==")[0] in OF_SOURCES]
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    target = ["--python-version", options.python_version, "--platform", "manylinux_2_28_x86_64"]
    target += ["--platform", "manylinux2014_x86_64", "--implementation", "cp", "--only-binary=:all:"]
    folder = str(options.folder)
    wheels = [line for line in requirements if line not in sources]
    subprocess.run([*pip, "download", "--no-deps", "-d", folder, *target, *wheels], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, *sources]
    subprocess.run(build, check=True, env={**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"})
    size = sum(path.stat().st_size for path in options.folder.glob("*.whl"))
    print(f"{len(requirements)} wheels, {size / 2**20:.1f} MiB in {options.folder}")
    if size > MAX_BYTES:
        sys.stderr.write(f"error: {options.folder}: {size >> 20} MiB of wheels, more than {MAX_BYTES >> 20}\n")
    return int(size > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
