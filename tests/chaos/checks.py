"""What must be true of a run at its end, whatever happened on the way."""

from __future__ import annotations

from collections import Counter

import pyarrow.parquet as pq

from tests.harness.workshop import Run

CACHED = ("reward/judge_calls",)
"""Metrics that count what a restarted judge has to be asked again."""


def differences(run: Run, reference: Run | None) -> list[str]:
    """What is wrong with a finished run: its ledger, its answers, its numbers against an undisturbed one."""
    return [*_ledger(run), *_answers(run), *(_numbers(run, reference) if reference else [])]


def _ledger(run: Run) -> list[str]:
    """Each lease was trained once, returned, or put aside."""
    ledger, leases = dict(run.summary["ledger"]), run.summary["leases"]
    imbalance = ledger.pop("imbalance")
    found = [f"ledger: {imbalance}"] if imbalance else []
    if sum(ledger.values()) != leases["opened"]:
        found.append(f"ledger: {leases['opened']} leases were opened, {ledger} ended")
    trained = sum(stage["groups_trained"] for stage in run.summary["stages"])
    if ledger["trained"] != trained:
        found.append(f"ledger: {ledger['trained']} groups trained, {trained} in the stages")
    return found


def _answers(run: Run) -> list[str]:
    """No group was trained on twice, and as many as the ledger says."""
    rows = [row for path in run.folder.glob("trajectories/step-*.parquet") for row in pq.read_table(path).to_pylist()]
    trained = Counter(row["lease_id"] for row in rows if row["trained"] and row["sample"] == 0)
    twice = [lease for lease, count in trained.items() if count > 1]
    found = [f"leases trained on twice: {twice}"] if twice else []
    if len(trained) != run.summary["ledger"]["trained"]:
        found.append(f"{len(trained)} groups in trajectories/, {run.summary['ledger']['trained']} in the ledger")
    return found


def _numbers(run: Run, reference: Run) -> list[str]:
    """Every step, also one that was repeated, has the numbers of the undisturbed run; so have the weights."""
    expected = {line["step"]: line for line in reference.numbers}
    found = []
    for line in run.numbers:
        keys = [key for key, value in line.items() if key not in CACHED and expected[line["step"]].get(key) != value]
        if keys:
            found.append(f"step {line['step']} differs from the undisturbed run in {', '.join(keys[:4])}")
    if missing := expected.keys() - {line["step"] for line in run.numbers}:
        found.append(f"steps {sorted(missing)} are missing")
    ours, theirs = (one.folder / "model" / "model.safetensors" for one in (run, reference))
    if ours.read_bytes() != theirs.read_bytes():
        found.append("the weights differ from those of the undisturbed run")
    return found[:5]
