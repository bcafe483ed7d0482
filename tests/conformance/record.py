"""Records the signatures of what the product uses of the pinned builds for GPUs: `python -m tests.conformance.record`.

The wheel of vLLM (330 MB) is fetched from the configured package index into a temporary folder and unpacked there, not
installed; `--wheel` takes one that is there. DeepSpeed and torch are read from this environment: DeepSpeed has one
source for all, and the builds of torch for CPU and GPU have the same Python sources and operators.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.conformance.check import (
    OPERATORS,
    PACKAGES,
    RECORD,
    PrivateName,
    listed_names,
    locked_versions,
    operator_schema,
)
from tests.conformance.settings import deepspeed_settings, engine_settings, vllm_variables
from tests.conformance.signatures import Library, Missing
from tests.conformance.uses import product_uses

ZERO = "deepspeed.runtime.zero"
SECTIONS = {
    "zero_optimization": f"{ZERO}.config.DeepSpeedZeroConfig",
    "zero_optimization.offload_optimizer": f"{ZERO}.offload_config.DeepSpeedZeroOffloadOptimizerConfig",
    "zero_optimization.offload_param": f"{ZERO}.offload_config.DeepSpeedZeroOffloadParamConfig",
    "bf16": "deepspeed.runtime.precision_config.DeepSpeedBF16Config",
}
"""Section of DeepSpeed's configuration -> its model."""
CONSTANTS = ("deepspeed.runtime.constants", "deepspeed.runtime.config")
"""Modules that name the keys of the sections without a model."""


def main() -> None:
    """Parse the options, read, write the record."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.record", description=__doc__)
    parser.add_argument("--wheel", type=Path, help="wheel of vLLM for GPUs")
    options = parser.parse_args()
    versions = locked_versions()
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or _fetch(f"vllm=={versions['vllm']}", Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.endswith((".py", "METADATA"))])
        versions["vllm"] = wheel.name.split("-")[1]
        roots = {"vllm": Path(folder) / "vllm", **{name: _installed(name) for name in PACKAGES if name != "vllm"}}
        for name in roots:
            if name != "vllm":
                versions[name] = version(name).partition("+")[0]
        record = {"versions": versions, **_read(Library(roots), roots)}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _fetch(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, requirement], check=True)
    return next(folder.glob("*.whl"))


def _installed(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _read(library: Library, roots: dict[str, Path]) -> dict[str, Any]:
    missing: list[str] = []
    names: dict[str, Any] = {}
    for name in sorted({use.name for use in product_uses()}):
        try:
            names[name] = operator_schema(name) if name.startswith(OPERATORS) else _joined(library.parameters(name))
        except (Missing, AttributeError) as error:
            missing.append(str(error))
    keys = {section: sorted(_known(library, section, used)) for section, used in deepspeed_settings().items()}
    missing += [f"{s}.{key}" for s, used in deepspeed_settings().items() for key in used - set(keys[s])]
    known = {entry.rstrip("=") for entry in names["vllm.engine.arg_utils.AsyncEngineArgs"].split(", ")}
    missing += [f"vllm: {key}" for key in engine_settings() - known]
    variables = {name for name in vllm_variables() if f'"{name}"' in library.text("vllm.envs")}
    missing += sorted(vllm_variables() - variables)
    missing += [f"private name {name}" for name in listed_names() if not _is_there(name, roots)]
    if missing:
        sys.exit("error: the pinned packages do not have\n  " + "\n  ".join(missing))
    return {"names": names, "deepspeed_config": keys, "vllm_variables": sorted(variables)}


def _known(library: Library, section: str, used: set[str]) -> set[str]:
    if section in SECTIONS:
        return used & library.fields(SECTIONS[section])
    texts = [library.text(module) for module in CONSTANTS]
    return {key for key in used if any(re.search(rf"[\"']{key}[\"']", text) for text in texts)}


def _joined(parameters: list[str] | None) -> str | None:
    return None if parameters is None else ", ".join(parameters)


def _is_there(name: PrivateName, roots: dict[str, Path]) -> bool:
    """Whether the last part of a private name occurs in the file that the list gives for it."""
    path = roots[name.package] / name.file
    last = re.escape(name.name.rpartition(".")[2])
    return path.is_file() and re.search(rf"\b{last}\b", path.read_text(encoding="utf-8", errors="replace")) is not None


if __name__ == "__main__":
    main()
