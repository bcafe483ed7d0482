"""A folder in which small runs are started, and what they leave: the run folder and its commands."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.harness.command import ROOT, Command, free_port, kill

MEASURED = ("rollout/object_store_bytes", "sync/probe_gap_max")
"""Metrics that are measured of the machine; no two runs agree on them."""


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
        """The lines of training steps."""
        return [line for line in self.lines("metrics.jsonl") if "heldout/accuracy" not in line]

    @property
    def evaluations(self) -> list[dict]:
        """The lines of held-out questions."""
        return [line for line in self.lines("metrics.jsonl") if "heldout/accuracy" in line]

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


class Workshop:
    """Starts commands in a folder of its own and cleans up behind them."""

    def __init__(self, folder: Path, overrides: dict[str, object]) -> None:
        self.folder = folder
        self.overrides = overrides
        self.ray_folder = Path(tempfile.mkdtemp(prefix="qwenlong-"))  # short: Ray puts sockets into it
        self.token_file = self.ray_folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        """Of the Ray that tests start themselves, as docs/operations.md tells people to."""
        self.environment = {
            "RAY_TMPDIR": str(self.ray_folder),
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
        shutil.rmtree(self.ray_folder, ignore_errors=True)
