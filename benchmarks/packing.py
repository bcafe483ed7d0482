"""Balance of whole groups over ranks: heaviest load over mean load, and the time that planning takes.

Prompt lengths are log-normal around the average of the paper's data (11.4K tokens, longest 60K), cut to the two phases
of its curriculum; responses are log-normal up to 10K. Groups are never cut across ranks, so the heaviest group is a
floor under the heaviest rank; `detail` states it. It also holds two reference partitions of the same groups: equally
many per rank, and heaviest first without trades.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.line import Claim, environment, print_line
from learner.batch.microbatch import TrainingItem
from learner.batch.packing import PAIR_COST, balance, part_cost, plan_slice

GOALS = {32: 1.02, 64: 1.05}
PHASES = {"up to 20K": (1_000, 20_000), "20K to 60K": (20_000, 60_000)}
MAX_TOKENS = 160_000


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--groups", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5, help="traces; the worst counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        _measure(_trace(options.groups, options.group_size, bounds, options.seed + i), num_ranks, phase)
        for phase, bounds in PHASES.items()
        for i in range(options.seeds)
        for num_ranks in GOALS
    ]
    claims = [
        Claim.at_most(
            f"heaviest over mean rank, {n} ranks", max(r["balance"] for r in rows if r["ranks"] == n), "ratio", goal
        )
        for n, goal in GOALS.items()
    ]
    milliseconds = statistics.median(row["milliseconds"] for row in rows)
    claims.append(Claim.at_most(f"planning {options.groups} groups", milliseconds, "ms", 5.0))
    print_line("packing", claims, {"rows": rows, **environment("numpy")})


def _trace(count: int, group_size: int, bounds: tuple[int, int], seed: int) -> list[TrainingItem]:
    """Groups with prompts inside the bounds, drawn again until they are."""
    rng = np.random.default_rng(seed)
    prompts: list[int] = []
    while len(prompts) < count:
        drawn = rng.lognormal(np.log(9_000), 0.9, size=4 * count)
        prompts += [int(n) for n in drawn if bounds[0] < n <= bounds[1]]
    responses = np.clip(rng.lognormal(np.log(1_500), 0.8, size=(count, group_size)), 16, 10_000)
    return [
        TrainingItem(
            group=None,
            advantages=(0.0,) * group_size,
            prompt_tokens=prompt,
            response_tokens=tuple(int(n) for n in lengths),
        )
        for prompt, lengths in zip(prompts[:count], responses, strict=True)
    ]


def _measure(groups: Sequence[TrainingItem], num_ranks: int, phase: str) -> dict:
    costs = {i: part_cost(group, range(len(group.response_tokens)), PAIR_COST) for i, group in enumerate(groups)}
    seconds = []
    for _ in range(5):
        start = time.process_time()
        plan_slice(groups, num_ranks=num_ranks, max_tokens=MAX_TOKENS)
        seconds.append(time.process_time() - start)
    mean = sum(costs.values()) / num_ranks
    return {
        "phase": phase,
        "ranks": num_ranks,
        "balance": max(sum(costs[i] for i in rank) for rank in balance(costs, num_ranks)) / mean,
        "heaviest_group": max(costs.values()) / mean,
        "equally_many": _equally_many(costs, num_ranks) / mean,
        "heaviest_first": _heaviest_first(costs, num_ranks) / mean,
        "milliseconds": 1e3 * statistics.median(seconds),
    }


def _heaviest_first(costs: dict[int, float], num_ranks: int) -> float:
    load = [0.0] * num_ranks
    for cost in sorted(costs.values(), reverse=True):
        load[load.index(min(load))] += cost
    return max(load)


def _equally_many(costs: dict[int, float], num_ranks: int) -> float:
    """Back and forth over the ranks in order of cost, so that all hold equally many."""
    load = [0.0] * num_ranks
    for index, cost in enumerate(sorted(costs.values(), reverse=True)):
        lap, place = divmod(index, num_ranks)
        load[place if lap % 2 == 0 else num_ranks - 1 - place] += cost
    return max(load)


if __name__ == "__main__":
    main()
