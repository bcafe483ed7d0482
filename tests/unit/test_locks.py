"""The lock files install what pyproject.toml asks for, and the same versions with and without GPUs."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("cpu", "gpu")
APART = {"apache-tvm-ffi"}
"""Other version on a GPU, where packages that a CPU does not need hold it back."""
NOT_ON_CPU = {"triton", "torchaudio", "torchcodec", "torchvision"}
"""Their builds for CUDA break `import transformers` beside a torch for CPUs."""


def locked(extra):
    """Name -> version. A line is `name==version` and nothing else: no index, no option, no address."""
    lines = (ROOT / f"requirements-{extra}.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == [canonicalize_name(name) for name in pins], "names as packages are found under"
    assert len(pins) == len(lines), "a package occurs twice"
    return {name: Version(version) for name, version in pins.items()}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_lock_file_satisfies_every_requirement(extra):
    pins, extras = locked(extra), PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *extras[extra], *extras["dev"])]
    unmet = [
        str(requirement)
        for requirement in wanted
        if canonicalize_name(requirement.name) not in pins
        or not requirement.specifier.contains(pins[canonicalize_name(requirement.name)], prereleases=True)
    ]
    assert not unmet, f"requirements-{extra}.lock does not hold them; run `make lock`"


def test_both_lock_files_agree_where_they_share_a_package():
    cpu, gpu = locked("cpu"), locked("gpu")
    apart = {name for name in cpu.keys() & gpu.keys() if cpu[name].public != gpu[name].public}
    assert apart == APART


def test_the_cpu_lock_leaves_out_what_breaks_a_torch_for_cpus():
    assert not NOT_ON_CPU & locked("cpu").keys()


def test_nothing_in_the_gpu_lock_is_built_against_torch_at_installation():
    assert not {"flash-attn", "flash-attn-3"} & locked("gpu").keys()
