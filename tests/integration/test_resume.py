"""A start that failed, mended; a run that goes on with other keys: what is free, what is asked for, what is told."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

NUM_STEPS, SECRET = 24, "open-sesame-4711"  # 24 as in conftest.py
WARM_UP = {"curriculum__phases": [], "data__train": None, "data__evaluation": None}


@pytest.fixture(scope="module")
def changed(workshop):
    """A warm-up in three commands with secrets in their environment: no time to start; mended, then Ctrl-C; changed."""
    run = workshop.new_run("changed")

    def start(*arguments):
        command = (sys.executable, "-m", "cluster.cli", "train", *arguments)
        return workshop.run(*command, OPENAI_API_KEY=SECRET, HF_TOKEN=SECRET, MY_OWN_PASSWORD=SECRET)

    run.outputs, run.environments = [], {}
    for timeout_s, wait_for in ((0.1, None), (300, 3)):
        command = start(*workshop.recipe(**WARM_UP, cluster__startup_timeout_s=timeout_s), "--run-dir", run.folder)
        if wait_for is not None:
            run.wait_for_steps(command, wait_for)
            for name, pid in run.events("actors_ready")[-1]["pids"].items():
                run.environments[name] = Path(f"/proc/{pid}/environ").read_text(errors="replace")
            os.killpg(command.process.pid, signal.SIGINT)
        run.finish(command)
        run.outputs.append(run.output)
    run.steps_before = len(run.metrics)
    free = ("learner.num_ranks=2", "learner.max_tokens_per_microbatch=900", "cluster.startup_timeout_s=200",
            "learner.offload=[optimizer]", "learner.gradient_checkpointing=true")  # fmt: skip
    asked = ("sft.learning_rate=1e-3", "--allow-change", "sft.learning_rate")
    run.finish(start("--resume", run.folder, *free, *asked))
    run.outputs.append(run.output)
    return run


def test_a_start_that_failed_does_not_block_the_mended_command(changed):
    assert changed.exit_statuses == [1, 130, 0], changed.outputs
    assert "cluster.startup_timeout_s=0" in changed.outputs[0]
    assert [line["step"] for line in changed.metrics] == list(range(NUM_STEPS))


def test_a_resume_tells_and_records_what_it_changes(changed):
    lines = changed.outputs[2].splitlines()
    (event,) = changed.events("recipe_changed")
    assert event["changes"] == {
        "cluster.startup_timeout_s": [300.0, 200.0],
        "learner.gradient_checkpointing": [False, True],
        "learner.max_tokens_per_microbatch": [2000, 900],
        "learner.num_ranks": [1, 2],
        "learner.offload": [[], ["optimizer"]],
        "sft.learning_rate": [0.004, 0.001],
    }
    assert all(f"changed: {key}: {old} -> {new}" in lines for key, (old, new) in event["changes"].items())
    assert set(changed.events("actors_ready")[-1]["pids"]) == {"learner-0", "learner-1"}


def test_the_new_learning_rate_counts_from_the_resume_on(changed):
    rates = [line["sft/learning_rate"] for line in changed.metrics]
    assert 3 <= changed.steps_before < NUM_STEPS
    assert rates[-1] < 0.3 * rates[3], "a quarter, by the same schedule"


def test_no_secret_reaches_an_actor_that_does_not_need_it(changed):
    assert changed.environments
    for name, environment in changed.environments.items():
        assert SECRET not in environment, name


def test_nobody_else_reads_a_file_of_a_run(changed):
    files = [path for path in changed.folder.rglob("*") if not path.is_symlink()]
    readable = [path for path in (changed.folder, *files) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert readable == []
