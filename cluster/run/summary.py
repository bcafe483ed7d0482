"""summary.json: the results of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.recipe.config import RunConfig
from cluster.run.progress import Progress
from curriculum.leases import LeaseCounts


def summarise(
    config: RunConfig, progress: Progress, leases: LeaseCounts | None, imbalance: str | None = None
) -> dict[str, Any]:
    """Return the results as JSON values.

    For each stage: steps, wall seconds, held-out accuracy before and after at each length, replayed share and judge
    calls. Over the whole run: the counts of the lease book, the ledger, any difference between the two, and what is in
    quarantine.
    """
    return {
        "name": config.name,
        "seed": config.seed,
        "steps": progress.step,
        "policy_version": progress.policy_version,
        "base_accuracy": progress.base_accuracy,
        "stages": [{**asdict(stage), "replayed_share": stage.replayed_share} for stage in progress.finished_stages],
        "leases": asdict(leases) if leases else None,
        "quarantine": {task_id: asdict(task) for task_id, task in progress.quarantine.items()},
        "ledger": {**asdict(progress.ledger), "imbalance": imbalance} if leases else None,
    }
