"""One update of one group: the prompt forwarded once against once per response.

`--mode shared`, `dense` or `parts` measures one side in this process. `--mode all`, the default, runs them in turn in
processes of their own and compares them: speed against the ceiling in FLOPs, peak memory, and the gradients. `parts` is
the shared prompt with one response at a time in a layer, which is then computed again in the backward pass.

Dense is torch's own attention on every prompt-response pair, no padding, LM head on response tokens only, one backward
pass for the whole group, which is what a micro-batch of G answers costs. Seconds are CPU seconds of this process,
median of `--repeats` updates after one warm-up; the peak is that of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.group_update import (
    add_shape_options,
    gradient,
    make_group,
    make_policy,
    make_row_in_parts,
    make_rows,
    shape_of,
    update,
)
from benchmarks.line import Claim, environment, print_line, say
from learner.batch.microbatch import TrainingGroup
from learner.zero3.policy import Policy

SIDES = ("dense", "shared", "parts")
SHARE_OF_CEILING, MEMORY_SHARE, GRADIENT_ERROR = 0.90, 0.4, 1e-6


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__)
    add_shape_options(parser)
    parser.add_argument("--mode", choices=("all", *SIDES), default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side in mode all")
    parser.add_argument("--gradients", type=Path, help="file for the gradient vector (.npy)")
    options = parser.parse_args()
    if options.mode == "all":
        compare(options)
    else:
        print_line("learner", [], measure(options))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side, in this process."""
    torch.set_num_threads(options.threads)
    shape = shape_of(options)
    policy = make_policy(shape, options.seed)
    group = make_group(shape, options.seed)
    run, tokens = _side(options.mode, policy, group)
    seconds, cpu_seconds, loss = [], [], 0.0
    for repeat in range(options.repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
        say(f"{options.mode} {repeat}: {cpu_seconds[-1]:.2f} s of CPU")
    gradients = gradient(policy)
    if options.gradients is not None:
        np.save(options.gradients, gradients.numpy())
    return {
        "mode": options.mode,
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": loss,
        "grad_norm": float(gradients.double().norm()),
        "tokens": tokens,
        "ceiling": shape.ceiling,
        "repeats": cpu_seconds,
        "threads": options.threads,
        "responses": shape.responses,
        "environment": environment("torch", "transformers", "numpy"),
    }


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn, in processes of their own."""
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        files = {mode: Path(folder) / f"{mode}.npy" for mode in SIDES}
        for _ in range(options.rounds):
            for mode, file in files.items():
                runs[mode].append(_child(mode, file))
        gradients = {mode: np.load(file) for mode, file in files.items()}

    def ratios(field: str, mode: str, other: str) -> list[float]:
        return [a[field] / b[field] for a, b in zip(runs[mode], runs[other], strict=True)]

    def error(mode: str) -> float:
        difference = np.linalg.norm(gradients[mode] - gradients["dense"])
        return float(difference / np.linalg.norm(gradients["dense"]))

    ceiling = runs["shared"][0]["ceiling"]
    speedups = ratios("cpu_seconds", "dense", "shared")
    memory = statistics.median(ratios("peak_rss_mb", "shared", "dense"))
    claims = [
        Claim.at_least("share of the FLOP ceiling", statistics.median(speedups) / ceiling, "ratio", SHARE_OF_CEILING),
        Claim.at_most("peak memory against dense", memory, "ratio", MEMORY_SHARE),
        Claim.at_most("relative difference of the gradients", error("shared"), "ratio", GRADIENT_ERROR),
        Claim.at_most("relative difference of the gradients in parts", error("parts"), "ratio", GRADIENT_ERROR),
    ]
    detail = {
        "ceiling": ceiling,
        "speedups": speedups,
        "speedups_in_parts": ratios("cpu_seconds", "dense", "parts"),
        "memory_in_parts": ratios("peak_rss_mb", "parts", "shared"),
    }
    print_line("learner", claims, {**detail, **runs})


def _side(mode: str, policy: Policy, group: TrainingGroup) -> tuple[Callable[[], float], int]:
    """The update of one side, and the tokens that it forwards."""
    rows = [make_row_in_parts(group)] if mode == "parts" else make_rows(group, shared=mode == "shared")
    return lambda: update(policy, rows), sum(row.input_ids.shape[1] for row in rows)


def _child(mode: str, gradients: Path) -> dict[str, Any]:
    """One side in a process of its own, with the options of this one."""
    command = [sys.executable, "-m", "benchmarks.learner", *sys.argv[1:], "--mode", mode, "--gradients", str(gradients)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["detail"]


if __name__ == "__main__":
    main()
