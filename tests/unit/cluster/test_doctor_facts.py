"""What a node says of itself, where its libraries and files say this or that."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from cluster.doctor import facts, network
from cluster.doctor.facts import PACKAGES, node_facts
from cluster.doctor.gpus import read_gpus
from cluster.doctor.network import read_network


class NVMLError(Exception):
    pass


class FakeNvml:
    """nvidia-ml-py on a node with two GPUs, of which the second cannot be divided."""

    NVMLError = NVMLError

    def __init__(self, *, fails_at=None) -> None:
        self._fails_at = fails_at
        self.is_open = False

    def __getattr__(self, name):
        def call(*arguments):
            if name == self._fails_at:
                raise NVMLError("Driver/library version mismatch")
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _nvmlInit(self):
        self.is_open = True

    def _nvmlShutdown(self):
        self.is_open = False

    def _nvmlSystemGetDriverVersion(self):
        return "580.82.07"

    def _nvmlSystemGetCudaDriverVersion_v2(self):
        return 13010

    def _nvmlDeviceGetCount(self):
        return 2

    def _nvmlDeviceGetHandleByIndex(self, index):
        return index

    def _nvmlDeviceGetName(self, index):
        return ("NVIDIA A100", b"NVIDIA L40S")[index]

    def _nvmlDeviceGetMemoryInfo(self, index):
        return SimpleNamespace(total=(80, 48)[index], free=(79, 5)[index])

    def _nvmlDeviceGetMigMode(self, index):
        if index == 1:
            raise NVMLError("Not Supported")
        return [1, 1]

    def _nvmlDeviceGetCudaComputeCapability(self, index):
        return ((8, 0), (8, 9))[index]


def missing(name):
    raise ImportError(name)


def test_driver_and_gpus_are_read_and_the_library_is_closed(tmp_path):
    nvml = FakeNvml()
    found = read_gpus(lambda name: nvml, tmp_path / "none")
    assert (found.driver, found.cuda, found.fault) == ("580.82.07", "13.1", None)
    assert [(gpu.name, gpu.total_bytes, gpu.free_bytes, gpu.capability, gpu.is_divided) for gpu in found.gpus] == [
        ("NVIDIA A100", 80, 79, (8, 0), True),
        ("NVIDIA L40S", 48, 5, (8, 9), False),
    ]
    assert not nvml.is_open


def test_a_node_without_a_driver_has_no_gpus_and_no_fault(tmp_path):
    for load in (missing, lambda name: FakeNvml(fails_at="nvmlInit")):
        assert read_gpus(load, tmp_path / "none") == read_gpus(missing, tmp_path / "none")


def test_a_driver_that_cannot_be_asked_is_told_with_its_version(tmp_path):
    kernel = tmp_path / "version"
    kernel.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release\nGCC 12.3.0\n")
    without = read_gpus(missing, kernel)
    assert (without.driver, without.fault) == (
        "570.133.20",
        "the package nvidia-ml-py, which reads GPUs, is not installed",
    )
    for step in ("nvmlInit", "nvmlDeviceGetName"):
        broken = read_gpus(lambda name, step=step: FakeNvml(fails_at=step), kernel)
        assert broken.driver == "570.133.20"
        assert broken.fault.endswith(": Driver/library version mismatch")


@pytest.fixture
def interfaces(monkeypatch):
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.1", "ib0": "10.1.0.1", "eth1": None}
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(addresses)))
    monkeypatch.setattr(network, "_address", addresses.get)


@pytest.mark.parametrize(
    ("address", "named", "chosen"),
    [
        ("10.0.0.1", None, ("eth0", "10.0.0.1", False)),
        ("10.1.0.1", "", ("ib0", "10.1.0.1", False)),
        ("10.0.0.1", "ib", ("ib0", "10.1.0.1", True)),
        ("10.0.0.1", "eth1,eth0", ("eth0", "10.0.0.1", True)),
        ("10.0.0.1", "=eth1", ("eth1", None, True)),
        ("10.0.0.1", "bond0", ("bond0", None, True)),
        ("10.0.0.1", "^docker,lo", ("eth0", "10.0.0.1", False)),
        ("127.0.0.1", None, ("lo", "127.0.0.1", False)),
    ],
)
def test_the_interface_is_the_named_one_or_that_of_the_nodes_address(address, named, chosen, interfaces, tmp_path):
    found = read_network(address, named, infiniband=tmp_path)
    assert (found.interface, found.address, found.is_named) == chosen
    assert found.is_loopback == (found.address in (None, "127.0.0.1"))


def test_infiniband_ports_that_are_up_are_listed(tmp_path):
    for device, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert read_network("127.0.0.1", None, infiniband=tmp_path).infiniband == ("mlx5_0 400 Gb/sec (4X NDR)",)


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8"), ("cuda: Optional[str] = None", None)],
)
def test_the_cuda_of_torch_is_read_from_its_sources(line, cuda, tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(facts.importlib.util, "find_spec", lambda name: spec)
    assert facts._torch_cuda() == cuda


def test_this_node_knows_its_versions_and_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    here = node_facts(str(tmp_path / "not" / "yet"), "127.0.0.1")
    assert set(here.versions) == set(PACKAGES)
    assert here.versions["ray"]
    assert here.name == f"{socket.gethostname()} (127.0.0.1)"
    assert [disk.purpose for disk in here.disks] == ["run folder", "temporary files", "shared memory"]
    assert all(0 <= disk.free_bytes <= disk.total_bytes for disk in here.disks)
