"""Runs of the whole product on real Ray, vLLM and DeepSpeed; each is started once and shared by the tests that read it.

Every command gets a marker in its environment, which all its descendants inherit: what carries the marker of a command
belongs to it, and is ended by process id when the test session ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.prompt import ChatPrompt, load_tokenizer
from curriculum.dataset import load_tasks
from curriculum.synthetic import VALUES, generate_demonstrations, generate_items

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers share the cores

ROOT = Path(__file__).parents[2]
MARKER = "QWENLONG_TEST_COMMAND"
RAY = Path(sys.executable).with_name("ray")
ROLLOUT = "rollout-0"
SHARING_REFERENCE = ("test_faults.py", "test_network.py", "test_training_run.py", "test_weight_sync.py")
START_S, RUN_S = 300.0, 300.0
"""Longest waits, in seconds, for actors to be ready and for a run to end."""

NUM_SFT_STEPS, NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 2, 6
NUM_STEPS = NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS
MEASURED = ("rollout/object_store_bytes", "sync/probe_gap_max")
BATCH_SIZE, GROUPS_PER_BATCH, GROUP_SIZE, NUM_HELDOUT = 16, 4, 8, 4


def pytest_xdist_make_scheduler(config, log):
    """The tests of a file are one unit of work for the parallel workers, those of `SHARING_REFERENCE` together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "reference" if file.endswith(SHARING_REFERENCE) else file

    return ByRun(config, log)


class Command:
    """One command line of the product in a process group of its own."""

    def __init__(self, arguments, *, log: Path, environment=None) -> None:
        self.marker = uuid.uuid4().hex
        self.log = log
        environment = {**os.environ, **(environment or {}), MARKER: self.marker}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_listen_to_interrupts,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = RUN_S) -> int:
        """Exit status; kills everything that is left after the timeout."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"still running after {timeout_s:.0f} s:\n{self.output[-4000:]}")

    def wait_for(self, found, what: str, timeout_s: float = START_S):
        """Polls `found()` until it is true; the command must stay alive meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"no {what}; exit status {self.process.poll()}:\n{self.output[-4000:]}")
            time.sleep(0.02)
        return value

    def listeners(self) -> list[tuple[str, int, str]]:
        """Address, port and command line of every socket on which a descendant listens."""
        sockets = _listening_sockets()
        found = []
        for pid, command in self._marked():
            with contextlib.suppress(OSError):
                targets = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
                found += [(*sockets[target], command) for target in targets & sockets.keys()]
        return sorted(found)

    def survivors(self, patience_s: float = 30.0) -> list[str]:
        """Command lines of the descendants that are still there after the patience."""
        deadline = time.monotonic() + patience_s
        while True:
            left = [command for _, command in self._marked()]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def end(self) -> None:
        """Kills whatever carries the marker."""
        for pid, _ in self._marked():
            kill(pid)
        self.process.wait(30)

    def _marked(self) -> list[tuple[int, str]]:
        wanted = f"{MARKER}={self.marker}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(folder.name), command))
            except OSError:
                continue  # it ended meanwhile, or is a zombie
        return found


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Address and port by the name that a file descriptor of the socket shows."""
    found = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, _, port = local.partition(":")
            words = bytes.fromhex(address)
            packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))  # words of this machine's order
            if state == "0A":
                found[f"socket:[{inode}]"] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def _listen_to_interrupts() -> None:
    """As in a terminal: a shell that runs the tests in the background hands down an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return attempt.getsockname()[1]


class Run:
    """A run folder and the commands that worked on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""
        self.exit_statuses: list[int] = []
        self.survivors: list[list[str]] = []
        """Of each command, the descendants that outlived it."""
        self.checkpoints: list[list[str]] = []
        """Names of the checkpoints after each command."""
        self.stop_s: list[float] = []
        """Seconds from each stop to the end of the command."""
        self.listeners: list[tuple[str, int, str]] = []
        """Address, port and command line of every socket on which a process of the run listened."""
        self.stranger = ""
        """Output of a process without the token that tried to join the Ray of the run."""

    def finish(self, command: Command) -> None:
        """Waits for the end of a command and notes what it left."""
        self.exit_statuses.append(command.wait())
        self.survivors.append(command.survivors())
        self.checkpoints.append(sorted(path.name for path in (self.folder / "checkpoints").glob("step-*")))
        self.output = command.output

    def stop(self, command: Command, *signals: int) -> None:
        """Sends signals to the process group, as a terminal, `timeout` and schedulers do, and waits for the end."""
        started = time.monotonic()
        for number in signals:
            os.killpg(command.process.pid, number)
            time.sleep(0.2)
        command.wait()
        self.stop_s.append(time.monotonic() - started)
        self.finish(command)

    def wait_for_steps(self, command: Command, num_steps: int) -> None:
        command.wait_for(lambda: len(self.metrics) >= num_steps, f"step {num_steps}")

    def kill(self, actor: str) -> None:
        """Kills an actor by the process id that the run has told of it."""
        kill(self.events("actors_ready")[-1]["pids"][actor])

    def lines(self, name: str) -> list[dict]:
        """Records of metrics.jsonl or events.jsonl, without a line that is still being written."""
        path = self.folder / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def metrics(self) -> list[dict]:
        return self.lines("metrics.jsonl")

    def events(self, kind: str) -> list[dict]:
        return [event for event in self.lines("events.jsonl") if event["event"] == kind]

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def numbers(self) -> list[dict]:
        """The metrics without what was measured of the machine."""
        return [
            {key: value for key, value in line.items() if not key.startswith("time/") and key not in MEASURED}
            for line in self.metrics
        ]


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


class Workshop:
    """Starts commands in a folder of its own and cleans up behind them."""

    def __init__(self, folder: Path, ray_folder: Path, overrides: dict[str, object]) -> None:
        self.folder = folder
        self.overrides = overrides
        self.token_file = ray_folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        """Of the Ray that tests start themselves, as docs/operations.md tells people to."""
        self.environment = {
            "RAY_TMPDIR": str(ray_folder),
            "RAY_ADDRESS": "",
            "WANDB_API_KEY": "",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.commands: list[Command] = []

    def train(self, run: Run, **overrides: object) -> Command:
        """`qwenlong train` of the tiny recipe into a new folder."""
        return self.start("train", *self.recipe(**overrides), "--run-dir", run.folder)

    def join(self, address: str, run: Run, **overrides: object) -> Command:
        """The same in a running Ray."""
        arguments = (*self.recipe(**overrides), "--run-dir", run.folder)
        return self.run(sys.executable, "-m", "cluster.cli", "train", *arguments, RAY_ADDRESS=address, **self.token)

    def resume(self, run: Run) -> Command:
        return self.start("train", "--resume", run.folder)

    def recipe(self, **overrides: object) -> list[str]:
        """The recipe and its overrides; a double underscore stands for a dot."""
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        values = {**self.overrides, "cluster.dashboard_port": free_port(), **dotted}
        return ["recipes/local.yaml", *(f"{key}={json.dumps(value)}" for key, value in values.items())]

    def start(self, *arguments: object) -> Command:
        return self.run(sys.executable, "-m", "cluster.cli", *arguments)

    def run(self, *arguments: object, **environment: str) -> Command:
        log = self.folder / f"command-{len(self.commands)}.log"
        command = Command(arguments, log=log, environment={**self.environment, **environment})
        self.commands.append(command)
        return command

    def new_run(self, name: str) -> Run:
        return Run(self.folder / name)

    def close(self) -> None:
        for command in self.commands:
            command.end()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ray_folder = Path(tempfile.mkdtemp(prefix="qwenlong-"))  # short: Ray puts sockets into it
    shop = Workshop(folder, ray_folder, _overrides(folder))
    yield shop
    shop.close()
    shutil.rmtree(ray_folder, ignore_errors=True)


def _overrides(folder: Path) -> dict[str, object]:
    """A few steps of everything, on questions that half of all answers satisfy: so groups vary from the first step."""
    short, long = {"min_words": 24, "max_words": 40}, {"min_words": 60, "max_words": 80}
    train = [
        row
        for name, lengths in {"short": short, "long": long}.items()
        for row in generate_items(num_items=16, **lengths, seed=1, prefix=f"train-{name}")
    ]
    heldout = [
        row
        for name, lengths in {"short": short, "long": long}.items()
        for row in generate_items(num_items=NUM_HELDOUT, **lengths, seed=2, prefix=f"heldout-{name}")
    ]
    demonstrations = generate_demonstrations(
        num_items=NUM_SFT_STEPS * BATCH_SIZE, **short, seed=3, quote_share=0.5, word_share=0.5, prefix="sft"
    )
    return {
        "name": "tiny",
        "data.train": write_jsonl(folder / "train.jsonl", [_easier(row) for row in train]),
        "data.sft": write_jsonl(folder / "sft.jsonl", demonstrations),
        "data.evaluation": write_jsonl(folder / "evaluation.jsonl", [_easier(row) for row in heldout]),
        "sft.epochs": 1,
        "sft.batch_size": BATCH_SIZE,
        "sft.learning_rate": 4e-3,
        "sft.warmup_steps": 4,
        "curriculum.phases": [
            {"name": "short", "max_prompt_tokens": 90, "end": {"type": "steps", "steps": NUM_SHORT_STEPS}},
            {"name": "long", "max_prompt_tokens": 160, "end": {"type": "steps", "steps": NUM_LONG_STEPS}},
        ],
        "curriculum.retrospective": {"selection": "difficulty", "max_share": 0.25},
        "groups_per_batch": GROUPS_PER_BATCH,
        "rollout.group_size": GROUP_SIZE,
        "rollout.max_response_tokens": 24,
        "reward.judge": {"type": "none"},
        "learner.learning_rate": 5e-4,
        "learner.max_tokens_per_microbatch": 2000,
        "checkpoint.every_steps": 5,
        "cluster.address": "local",
        "cluster.object_store_bytes": 200_000_000,
    }


def _easier(row: dict) -> dict:
    values = next(values for values in VALUES.values() if row["answers"][0] in values)
    return {**row, "answers": sorted({row["answers"][0], *values[::2]})}


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


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


def read_jsonl(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
