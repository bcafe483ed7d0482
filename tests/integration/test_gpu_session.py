"""The go on a machine with a GPU, rehearsed on a CPU with tiny shapes: nothing but the card is new on the day."""

import json
import os
import subprocess
import sys

import pytest

from tests.harness.command import ROOT


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    out = tmp_path_factory.mktemp("go")
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", "cpu", "--tiny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    logs = "".join(path.read_text(errors="replace")[-2000:] for path in out.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    return [json.loads(line) for line in done.stdout.splitlines()], out


def details(lines, benchmark):
    return [line["detail"] for line in lines if line["benchmark"] == benchmark]


def test_every_part_runs_to_its_end(session):
    lines, out = session
    assert details(lines, "gpu")[0]["incomplete"] == []
    kept = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert kept == lines[:-1]


def test_a_step_is_measured_shared_in_parts_and_dense_and_compared(session):
    lines, _ = session
    steps = [detail for detail in details(lines, "gpu_learner_step") if detail["kernel"] == "fa2"]
    assert [detail["way"] for detail in steps] == ["whole", "parts", "dense"]
    assert all(detail["seconds"] > 0 and detail["tflops"] > 0 for detail in steps)
    assert all(detail["predicted_bytes"] > 0 for detail in steps[:2])
    (comparison,) = [line for line in lines if line["benchmark"] == "gpu_learner_step_against_dense"]
    assert comparison["claims"][0]["name"] == "share of the FLOP ceiling"


def test_what_a_cpu_does_not_have_is_left_out_with_a_reason(session):
    lines, _ = session
    assert details(lines, "gpu_tests_learner")[0]["skipped_because"] == ["Skipped: no CUDA device on this machine"]
    (rates, fa3) = details(lines, "gpu_rates")
    assert rates["matmul_tflops"] > 0
    assert fa3["skipped"] == "a CPU has no FlashAttention-3"
