"""One update of one group: the prompt forwarded once against once per response.

`--mode shared` and `--mode dense` measure one side in this process. `--mode both`, the default, runs the two in turn in
processes of their own and compares them: speed against the ceiling in FLOPs, peak memory, and the gradients.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.group_update import add_shape_options, gradient, make_group, make_policy, make_rows, shape_of, update
from benchmarks.line import Claim, environment, print_line, say

SHARE_OF_CEILING, MEMORY_SHARE, GRADIENT_ERROR = 0.90, 0.4, 1e-6


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__)
    add_shape_options(parser)
    parser.add_argument("--mode", choices=("both", "shared", "dense"), default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side in mode both")
    parser.add_argument("--gradients", type=Path, help="file for the gradient vector (.npy)")
    options = parser.parse_args()
    if options.mode == "both":
        compare(options)
    else:
        print_line("learner", [], measure(options))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side, in this process."""
    torch.set_num_threads(options.threads)
    shape = shape_of(options)
    policy = make_policy(shape, options.seed)
    rows = make_rows(make_group(shape, options.seed), shared=options.mode == "shared")
    seconds, cpu_seconds, loss = [], [], 0.0
    for repeat in range(options.repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = update(policy, rows)
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
        "tokens": sum(row.input_ids.shape[1] for row in rows),
        "ceiling": shape.ceiling,
        "repeats": cpu_seconds,
        "threads": options.threads,
        "responses": shape.responses,
        "environment": environment("torch", "transformers", "numpy"),
    }


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        files = {mode: Path(folder) / f"{mode}.npy" for mode in ("dense", "shared")}
        runs = {mode: [] for mode in files}
        for _ in range(options.rounds):
            for mode, file in files.items():
                runs[mode].append(_child(mode, file))
        dense, shared = (np.load(files[mode]) for mode in ("dense", "shared"))
    error = float(np.linalg.norm(shared - dense) / np.linalg.norm(dense))
    ratios = [d["cpu_seconds"] / s["cpu_seconds"] for d, s in zip(runs["dense"], runs["shared"], strict=True)]
    memory = statistics.median(
        s["peak_rss_mb"] / d["peak_rss_mb"] for d, s in zip(runs["dense"], runs["shared"], strict=True)
    )
    ceiling = runs["shared"][0]["ceiling"]
    speedup = statistics.median(ratios)
    claims = [
        Claim.at_least("share of the FLOP ceiling", speedup / ceiling, "ratio", SHARE_OF_CEILING),
        Claim.at_most("peak memory against dense", memory, "ratio", MEMORY_SHARE),
        Claim.at_most("relative difference of the gradients", error, "ratio", GRADIENT_ERROR),
    ]
    print_line("learner", claims, {"speedup": speedup, "ceiling": ceiling, "ratios": ratios, **runs})


def _child(mode: str, gradients: Path) -> dict[str, Any]:
    """One side in a process of its own, with the options of this one."""
    command = [sys.executable, "-m", "benchmarks.learner", *sys.argv[1:], "--mode", mode, "--gradients", str(gradients)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["detail"]


if __name__ == "__main__":
    main()
