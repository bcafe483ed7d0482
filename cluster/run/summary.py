"""summary.json: the results of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.recipe.config import RunConfig
from cluster.run.heldout_statistics import Evaluation
from cluster.run.progress import Progress
from curriculum.leases import LeaseCounts


def summarise(
    config: RunConfig, progress: Progress, leases: LeaseCounts | None, imbalance: str | None = None
) -> dict[str, Any]:
    """Return the results as JSON values.

    For each stage: steps, wall seconds, held-out accuracy before and after at the lengths of each phase, all numbers of
    the evaluation after it (`heldout`), replayed share and judge calls. Over the whole run: the counts of the lease
    book, the ledger, any difference between the two, and what is in quarantine.
    """
    return {
        "name": config.name,
        "seed": config.seed,
        "steps": progress.step,
        "policy_version": progress.policy_version,
        "base_accuracy": _by_phase(progress.base_heldout),
        "base_heldout": asdict(progress.base_heldout) if progress.base_heldout else None,
        "stages": [
            {
                **asdict(stage),
                "accuracy_before": _by_phase(before),
                "accuracy_after": _by_phase(after),
                "replayed_share": stage.replayed_share,
            }
            for stage, (_, before, after) in zip(progress.finished_stages, progress.measured, strict=True)
        ],
        "leases": asdict(leases) if leases else None,
        "quarantine": {task_id: asdict(task) for task_id, task in progress.quarantine.items()},
        "ledger": {**asdict(progress.ledger), "imbalance": imbalance} if leases else None,
    }


def _by_phase(found: Evaluation | None) -> dict[str, float] | None:
    return None if found is None else {name: cell.accuracy for name, cell in found.phases.items()}
