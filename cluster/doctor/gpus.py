"""Driver and GPUs of this node, as NVIDIA's management library tells them; CUDA itself is not touched."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
"""Where the kernel's part of the driver says which version it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    """Compute capability, like (9, 0) for Hopper."""
    is_divided: bool
    """Whether MIG divides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The driver of a node and its GPUs."""

    driver: str | None = None
    """Version like 580.82.07; None without one."""
    cuda: str | None = None
    """Newest CUDA that the driver gives, like 13.0."""
    gpus: tuple[Gpu, ...] = ()
    fault: str | None = None
    """Why driver or GPUs could not be read; None if they were."""


def read_gpus(load: Callable[[str], Any] = importlib.import_module, kernel_driver: Path = KERNEL_DRIVER) -> Gpus:
    """Return driver and GPUs; whatever is not there is told, not raised.

    Args:
        load: imports the package nvidia-ml-py, whose module is called pynvml.
        kernel_driver: file that is there while a driver is loaded.
    """
    try:
        nvml = load("pynvml")
    except ImportError:
        driver = _kernel_driver(kernel_driver)
        fault = None if driver is None else "the package nvidia-ml-py, which reads GPUs, is not installed"
        return Gpus(driver=driver, fault=fault)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        driver = _kernel_driver(kernel_driver)
        return Gpus(driver=driver, fault=None if driver is None else f"the driver does not answer: {error}")
    try:
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return Gpus(
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpus=tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())),
        )
    except nvml.NVMLError as error:
        return Gpus(driver=_kernel_driver(kernel_driver), fault=f"its GPUs cannot be read: {error}")
    finally:
        nvml.nvmlShutdown()


def smallest_card(nodes: Iterable[Gpus]) -> int | None:
    """Return the memory of the smallest GPU of all nodes, in bytes; None without any."""
    return min((gpu.total_bytes for node in nodes for gpu in node.gpus), default=None)


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    is_divided = False
    with contextlib.suppress(nvml.NVMLError):  # a GPU that cannot be divided says that it does not know MIG
        is_divided = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=(int(major), int(minor)),
        is_divided=is_divided,
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _kernel_driver(path: Path) -> str | None:
    try:
        found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", path.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None
