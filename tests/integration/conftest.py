"""Runs of the whole product on real Ray, vLLM and DeepSpeed; each is started once and shared by those who read it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.prompt import ChatPrompt, load_tokenizer
from curriculum.dataset import load_tasks
from tests.harness.command import ROOT, free_port
from tests.harness.recipe import NUM_SFT_STEPS, read_jsonl, small_recipe, write_jsonl
from tests.harness.workshop import Workshop

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers share the cores

RAY = Path(sys.executable).with_name("ray")
ROLLOUT = "rollout-0"
SHARING_REFERENCE = (
    "test_checkpoints.py",
    "test_faults.py",
    "test_network.py",
    "test_recovery.py",
    "test_training_run.py",
    "test_weight_sync.py",
)


def pytest_xdist_make_scheduler(config, log):
    """The tests of a file are one unit of work for the parallel workers, those of `SHARING_REFERENCE` together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "reference" if file.endswith(SHARING_REFERENCE) else file

    return ByRun(config, log)


@dataclass(frozen=True)
class Cluster:
    """A Ray that tests have started themselves."""

    url: str
    """Of its dashboard, which takes jobs."""
    address: str
    """Of itself, which a run can join."""
    token: str

    def get(self, path: str) -> Any:
        """JSON that the dashboard answers with; None if it does not."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return json.load(reply)
        except OSError:
            return None


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shop = Workshop(folder, small_recipe(folder))
    yield shop
    shop.close()


@pytest.fixture(scope="session")
def reference(workshop):
    """The whole recipe, undisturbed; a stranger tries to join it."""
    run = workshop.new_run("reference")
    command = workshop.train(run)
    command.wait_for(lambda: run.events("actors_ready"), "actors")
    log = workshop.folder / "stranger.log"
    stranger = _join_as_a_stranger(command.listeners(), log)
    run.wait_for_steps(command, NUM_SFT_STEPS + 1)
    run.listeners = command.listeners()
    run.finish(command)
    stranger.kill()
    stranger.wait()
    run.stranger = log.read_text()
    assert run.exit_statuses == [0], run.output[-4000:]
    return run


def _join_as_a_stranger(listeners: list[tuple[str, int, str]], log: Path) -> subprocess.Popen[bytes]:
    """A process of an empty environment, but for the variable that lets Ray take a loopback address as it is."""
    (port,) = {port for _, port, command in listeners if command.split()[0].endswith("/gcs_server")}
    program = f"import ray; ray.init(address='127.0.0.1:{port}'); print('joined', flush=True)"
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env={"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


@pytest.fixture(scope="session")
def disturbed(workshop):
    """The same run in three sittings: a rollout actor killed, then two signals; SIGKILL to the driver; the end."""
    run = workshop.new_run("disturbed")
    command = workshop.train(run)
    run.wait_for_steps(command, NUM_SFT_STEPS + 1)
    run.kill(ROLLOUT)
    run.wait_for_steps(command, NUM_SFT_STEPS + 2)
    run.stop(command, signal.SIGTERM, signal.SIGTERM)

    num_steps = len(run.metrics)
    command = workshop.resume(run)
    run.wait_for_steps(command, num_steps + 2)
    os.kill(command.process.pid, signal.SIGKILL)
    run.finish(command)

    run.finish(workshop.resume(run))
    return run


@pytest.fixture(scope="module")
def head(workshop):
    """A Ray of `ray start`, with a token, as docs/operations.md tells people to."""
    port, dashboard = free_port(), free_port()
    ports = ("ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    command = workshop.run(
        RAY, "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=200000000", "--disable-usage-stats",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={port}",
        *(f"--{name}={free_port()}" for name in ports), f"--temp-dir={workshop.environment['RAY_TMPDIR']}/head",
        **workshop.token,
    )  # fmt: skip
    cluster = Cluster(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", workshop.token_file.read_text())
    command.wait_for(lambda: cluster.get("/api/jobs/") is not None, "dashboard of the cluster")
    yield cluster
    command.end()


@pytest.fixture(scope="module")
def submitted(workshop, head):
    """Two learner ranks, submitted as a job to a running cluster; in the second phase no answer can be right."""
    short, long = workshop.overrides["curriculum.phases"]
    tasks = load_tasks(
        workshop.overrides["data.train"],
        encoder=ChatPrompt(load_tokenizer(ROOT / "recipes/assets/local_base")),
        phase_limits=(short["max_prompt_tokens"], long["max_prompt_tokens"]),
        over_long="drop",
    ).records
    of_second_phase = {task.task_id for task in tasks if task.phase == 1}
    rows = read_jsonl(workshop.overrides["data.train"])
    impossible = [{**row, "answers": ["nowhere"]} if row["id"] in of_second_phase else row for row in rows]
    arguments = workshop.recipe(
        data__train=write_jsonl(workshop.folder / "impossible.jsonl", impossible),
        curriculum__phases=[{**short, "end": {"type": "steps", "steps": 1}}, long],
        curriculum__retrospective={"selection": "difficulty", "max_share": 0},
        curriculum__max_fruitless_steps=1,
        learner__num_ranks=2,
    )
    run = workshop.new_run("submitted")
    command = workshop.run(
        RAY, "job", "submit", "--address", head.url, "--working-dir", ".", "--",
        Path(sys.executable).with_name("qwenlong"), "train", *arguments, "--run-dir", run.folder,
        **workshop.token,
    )  # fmt: skip
    run.finish(command)
    return run
