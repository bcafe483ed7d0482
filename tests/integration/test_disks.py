"""Nodes that do not share the driver's disk: refused before anything is loaded, or served by a storage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run.checkpoints import Checkpoints
from cluster.run.progress import Progress
from curriculum.digest import FileDigest
from curriculum.seal import part_of
from curriculum.shared_folder import SharedFolder
from tests.harness.command import ROOT, free_port
from tests.harness.namespace import hiding, need_namespaces, seen_by
from tests.harness.workshop import Workshop
from tests.integration import disk_ranks

pytestmark = pytest.mark.integration

RAY = Path(sys.executable).with_name("ray")
BASE = ROOT / "recipes" / "assets" / "local_base"
NUM_STEPS, EVERY = 24, 4
WARM_UP = {
    "name": "disks",
    "curriculum.phases": [],
    "data.train": None,
    "data.evaluation": None,
    "data.sft": {"type": "generated", "items_per_length": 2 * NUM_STEPS, "lengths": [[24, 30]]},
    "sft.epochs": 1,
    "sft.batch_size": 2,
    "learner.num_ranks": 2,
    "learner.max_tokens_per_microbatch": 1000,
    "checkpoint.every_steps": EVERY,
    "checkpoint.keep.last": 2 * NUM_STEPS,
    "reward.judge": {"type": "none"},
    "tracking.wandb": False,
}


# ---- ranks by themselves, each on a node of its own


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two ranks, each with disks of its own; the run folder is that of the driver, and one disk is full."""
    base = tmp_path_factory.mktemp("nodes")
    for name in ("runs", "full", "bucket", "tmp-0", "tmp-1"):
        (base / name).mkdir()
    need_namespaces(base / "full")
    os.environ["BUCKET"] = str(base / "bucket")
    checkpoints = Checkpoints(base / "runs" / "run" / "checkpoints")
    hidden = checkpoints.begin(1)
    stored = checkpoints.begin(2, storage="bucket://store")
    SharedFolder("bucket://store/reference").make()
    order = {
        "model": str(BASE), "port": str(free_port()), "hidden": part_of(hidden, "learner").url,
        "stored": part_of(stored, "learner").url, "full": str(base / "full"), "reference": "bucket://store/reference",
    }  # fmt: skip
    processes = [_start_rank(base, order, rank, full="64m" if rank == 0 else "64k") for rank in range(2)]
    for rank, process in enumerate(processes):
        assert process.wait(200) == 0, (base / f"rank-{rank}.log").read_text()[-4000:]
    found = [json.loads((base / f"found-{rank}.json").read_text()) for rank in range(2)]
    yield checkpoints, stored, found
    del os.environ["BUCKET"]


def _start_rank(base, order, rank, *, full):
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(base / f"tmp-{rank}"),
    }  # fmt: skip
    with (base / f"rank-{rank}.log").open("w") as log:
        process = subprocess.Popen(
            hiding({base / "runs": "64m", base / "full": full}, sys.executable, disk_ranks.__file__),
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
        )  # fmt: skip
    process.stdin.write(json.dumps({**order, "rank": rank, "found": str(base / f"found-{rank}.json")}))
    process.stdin.close()
    return process


def test_ranks_that_do_not_see_the_folder_of_the_driver_refuse_to_save_and_make_none(ranks):
    _, _, found = ranks
    for of_rank in found:
        assert "learner: rank 0 does not see this folder of the driver; give a folder that every" in of_rank["hidden"]


def test_a_disk_that_is_full_on_one_node_is_told_by_all_ranks_before_anything_is_written(ranks):
    _, _, found = ranks
    for of_rank in found:
        assert of_rank["full"].startswith("DiskFull: ")
        assert "cannot be written (it takes " in of_rank["full"]
        assert "0.1 MB are free); its disk is full; free some space" in of_rank["full"]
        assert of_rank["left"] == []


def test_through_a_storage_the_driver_sees_the_parts_of_both_and_they_go_on_from_them_bit_for_bit(ranks):
    checkpoints, partial, found = ranks
    written = {name: FileDigest(**digest) for of_rank in found for name, digest in of_rank["written"].items()}
    assert {name for name in written if name.startswith("rank_")} == {f"rank_0000{i}.safetensors" for i in range(2)}
    state = {"progress": Progress(step=2).state_dict(), "curriculum": None, "inputs": {}}
    checkpoints.finish(partial, 2, state, written, keep_last=1)
    assert checkpoints.choose(pytest.fail).progress.step == 2
    assert all(of_rank["back"] and of_rank["same"] for of_rank in found)


def test_the_reference_gets_to_every_node_through_the_storage_and_leaves_no_scratch(ranks):
    _, _, found = ranks
    reference = SharedFolder("bucket://store/reference")
    assert {name: reference.digest(name) for name in reference.names()} == {
        name: FileDigest(**digest) for name, digest in found[0]["published"].items()
    }
    assert found[1]["published"] == {}
    assert [of_rank["kl"] for of_rank in found] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert [name for of_rank in found for name in of_rank["scratch"] if name.startswith("qwenlong")] == []


# ---- whole runs in a Ray whose nodes have disks of their own


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    for name in ("runs", "shared"):
        (folder / name).mkdir()
    need_namespaces(folder / "runs")
    shop = Workshop(folder, WARM_UP)
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def head(shop):
    """A node that does not see the folder of the runs, and where the driver joins."""
    port = free_port()
    head = _start_node(shop, shop.folder / "runs", "--head", f"--port={port}", "--include-dashboard=false")
    head.address = f"127.0.0.1:{port}"
    return head


def _start_node(shop, hidden, *arguments):
    ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    node = shop.run(
        *hiding(
            {hidden: "64m"}, RAY, "start", "--block", "--num-cpus=4", "--object-store-memory=200000000",
            "--disable-usage-stats", *arguments, *(f"--{name}={free_port()}" for name in ports),
        ),
        **shop.token,
    )  # fmt: skip
    node.wait_for(lambda: "Ray runtime started" in node.output, "node of Ray", 90)
    return node


def _errors(run):
    return [line for line in run.output.splitlines() if line.startswith("error: ")]


def test_a_run_whose_node_does_not_see_its_folder_ends_in_one_line_before_a_model_is_loaded(shop, head):
    run = shop.new_run("runs/unseen")
    run.finish(shop.join(head.address, run))
    assert run.exit_statuses == [2]
    (line,) = _errors(run)
    assert line.endswith(
        f"checkpoints of the run folder: {run.folder}/checkpoints is not the folder that the driver sees; give a "
        "folder that every node sees with --run-dir, or set checkpoint.storage"
    )
    assert line.startswith("error: node ")
    assert run.events("actors_ready") == []
    assert seen_by(head.process.pid, shop.folder / "runs") == []
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_with_a_storage_it_saves_is_interrupted_and_goes_on_bit_for_bit(shop, head):
    run, shared = shop.new_run("runs/stored"), shop.folder / "shared"
    command = shop.join(head.address, run, checkpoint__storage=f"file://{shared}")
    run.wait_for_steps(command, 2 * EVERY)
    run.stop(command, signal.SIGTERM)
    numbers = run.numbers
    assert 2 * EVERY <= len(numbers) < NUM_STEPS
    arguments = ("train", "--resume", run.folder, "--step", EVERY)
    run.finish(shop.run(sys.executable, "-m", "cluster.cli", *arguments, RAY_ADDRESS=head.address, **shop.token))
    assert run.exit_statuses == [130, 0], run.output[-4000:]
    repeated = run.numbers[len(numbers) :]
    assert [line["step"] for line in repeated] == list(range(EVERY, NUM_STEPS))
    assert repeated[: len(numbers) - EVERY] == numbers[EVERY:]
    assert (run.folder / "model" / "model.safetensors").is_file()
    named = {json.loads(note.read_text())["learner"] for note in run.folder.glob("checkpoints/*/elsewhere.json")}
    assert named == {f"file://{folder}" for folder in (shared / "stored").iterdir()}
    assert seen_by(head.process.pid, shop.folder / "runs") == []


def test_a_node_beside_it_that_does_not_see_the_model_is_named_with_the_key(shop, head):
    """The last test with this Ray: the node stays a while."""
    model = shop.folder / "models" / "base"
    shutil.copytree(BASE, model)
    node = _start_node(shop, model.parent, f"--address={head.address}")
    run = shop.new_run("runs/beside")
    shared = f"file://{shop.folder}/shared"
    run.finish(shop.join(head.address, run, checkpoint__storage=shared, model__path=str(model)))
    node.end()
    assert run.exit_statuses == [2]
    (line,) = _errors(run)
    assert line.endswith(
        f"model.path='{model}': is not there; put it on a disk that every node sees, or there on every node"
    )
    assert run.events("actors_ready") == []
    assert not (shop.folder / "shared" / "beside").exists()
