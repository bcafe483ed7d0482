"""Chaos: `python -m tests.chaos --seed N` does every kind of harm to real runs, and checks that nothing is lost.

An undisturbed run comes first. Then runs of the same recipe suffer one fault after another, at moments that the seed
chooses: each must be named, training must go on (where the command ends, after a resume), the ledger must balance, no
process may be left, and at lag 0 every number and every weight must be that of the undisturbed run.
Standard output: a JSON line for each fault, then a table.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.chaos.disk import SmallDisk
from tests.chaos.faults import FULL_DISK, Fault, catalogue
from tests.chaos.nodes import TwoNodes
from tests.chaos.report import line, say, table
from tests.chaos.trial import Outcome, Trial, Unrecoverable
from tests.harness.recipe import NUM_SFT_STEPS, small_recipe
from tests.harness.workshop import Run, Workshop

NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 56
NUM_STEPS = NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS
LAST_RUN_S = 120.0
"""Time that is kept (seconds) for a run to end."""
BOUNDS = {
    "cluster.notice_s": 2.0,
    "cluster.standstill_s": 10.0,
    "cluster.orphan_s": 20.0,
    "cluster.startup_timeout_s": 120.0,
    "cluster.max_actor_restarts": 100,
    "cluster.max_run_restarts": 100,
    "checkpoint.keep.last": 3,
}
JUDGE = {
    "type": "vllm",
    "model": "recipes/assets/local_judge",
    "cpu_kv_cache_bytes": 67108864,
    "max_concurrency": 64,
    "max_tokens": 8,
    "max_model_len": 1024,
}
LAGGING = {"rollout__max_policy_lag": 2, "learner__importance": {"cap": 2.0}, "learner__num_ranks": 2}


def main() -> int:
    """Exit status 0 if every fault was survived as promised."""
    arguments = _arguments()
    rng = Random(arguments.seed)
    chosen = [f for f in catalogue() if any(fnmatch.fnmatch(f.name, pattern) for pattern in arguments.faults)]
    if arguments.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    disk, shop = SmallDisk(folder / "disk"), Workshop(folder, _recipe(folder))
    if not disk.can_be_full:
        say("no disk can be filled: this user may not mount a tmpfs")
        chosen = [fault for fault in chosen if fault.name != FULL_DISK]
    ordeal = Ordeal(shop, disk, rng, time.monotonic() + 60 * arguments.minutes)
    try:
        for (lag, with_nodes), faults in _by_kind_of_run(chosen, rng).items():
            ordeal.suffer(faults, lag=lag, with_nodes=with_nodes)
    finally:
        shop.close()
        if ordeal.problems:
            say(f"kept for a look: {shutil.copytree(disk.path, folder / 'runs', symlinks=True)}")
        disk.close()
        if not ordeal.problems:
            shutil.rmtree(folder)
    print(f"\n{table(ordeal.outcomes)}\n")
    say(f"seed {arguments.seed}: {len(ordeal.outcomes)} of {len(chosen)} faults, {len(ordeal.problems)} problems")
    for problem in ordeal.problems:
        say(f"problem: {problem}")
    return 1 if ordeal.problems or len(ordeal.outcomes) < len(chosen) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=0, help="chooses order, moments and bits")
    parser.add_argument("--minutes", type=float, default=30, help="no longer than this")
    parser.add_argument("--faults", type=lambda text: text.split(","), default=["*"], help="names or patterns: a,b*")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    return parser.parse_args()


def _recipe(folder: Path) -> dict[str, object]:
    return {
        **small_recipe(folder),
        **BOUNDS,
        "reward.judge": JUDGE,
        "curriculum.phases": [
            {"name": "short", "max_prompt_tokens": 90, "end": {"type": "steps", "steps": NUM_SHORT_STEPS}},
            {"name": "long", "max_prompt_tokens": 160, "end": {"type": "steps", "steps": NUM_LONG_STEPS}},
        ],
    }


def _by_kind_of_run(faults: list[Fault], rng: Random) -> dict[tuple[int, bool], list[Fault]]:
    """The faults in a random order by lag and need of two nodes; those that ask for no lag mostly at lag 0."""
    found: dict[tuple[int, bool], list[Fault]] = {(0, False): [], (2, False): [], (2, True): []}
    for fault in rng.sample(faults, len(faults)):
        lag = rng.choice((0, 0, 0, 2)) if fault.lag is None else fault.lag
        found[lag, fault.needs_nodes].append(fault)
    return found


class Ordeal:
    """All runs, and what came of the faults that they suffered."""

    def __init__(self, shop: Workshop, disk: SmallDisk, rng: Random, deadline: float) -> None:
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []
        self._shop = shop
        self._disk = disk
        self._rng = rng
        self._deadline = deadline

    def suffer(self, faults: list[Fault], *, lag: int, with_nodes: bool) -> None:
        """Strike runs of one kind until every fault has been had, or the time is up."""
        reference = _reference(self._shop, self._disk) if faults and lag == 0 else None
        while faults and self._has_time:
            run = Run(self._disk.path / f"lag-{lag}-before-{len(faults)}-more")
            say(f"{run.folder.name}: starting")
            nodes = None
            try:
                nodes = TwoNodes(self._shop) if with_nodes else None
                found = self._suffer(run, faults, lag, nodes, reference)
            except AssertionError as error:
                self._shop.commands[-1].end()
                found = [str(error)]
                faults = faults[1:] if nodes is None and with_nodes else faults
            finally:
                if nodes:
                    nodes.close()
            self.problems += [f"{run.folder.name}: {problem}" for problem in found]
            say(f"{run.folder.name}: ended, {found or 'as it should'}")

    @property
    def _has_time(self) -> bool:
        return time.monotonic() + LAST_RUN_S < self._deadline

    def _suffer(
        self, run: Run, faults: list[Fault], lag: int, nodes: TwoNodes | None, reference: Run | None
    ) -> list[str]:
        """Let one run suffer as many faults as it has room for; return what was wrong at its end."""
        recipe = LAGGING if lag else {}
        trial = Trial(self._shop, run, recipe, disk=self._disk, nodes=nodes, rng=self._rng, num_steps=NUM_STEPS)
        while faults and trial.has_room and self._has_time:
            say(f"{run.folder.name}: {faults[0].name}")
            try:
                self._note(trial.face(faults.pop(0)))
            except Unrecoverable as error:
                self._note(error.args[0])
                return ["given up"]
        trial.finish(reference)
        return trial.problems

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.problems += [f"{outcome.fault}: {problem}" for problem in outcome.problems]
        print(line(outcome), flush=True)


def _reference(shop: Workshop, disk: SmallDisk) -> Run:
    say("the undisturbed run")
    run = Run(disk.path / "undisturbed")
    run.finish(shop.train(run))
    assert run.exit_statuses == [0], run.output[-4000:]
    return run


if __name__ == "__main__":
    sys.exit(main())
