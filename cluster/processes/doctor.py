"""`qwenlong doctor`: what every node of the cluster has, and what is wrong with it. Loads no model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.doctor.facts import node_facts
from cluster.doctor.findings import Findings, Node, Silent, findings
from cluster.doctor.gpus import smallest_card
from cluster.doctor.pins import pinned_versions
from cluster.doctor.table import node_table
from cluster.processes.capacity import demands, shortage
from cluster.processes.ray_session import running_ray
from cluster.processes.survey import survey
from cluster.recipe.cards import check_cards
from cluster.recipe.config import RunConfig
from cluster.recipe.load import load_recipe
from curriculum.errors import UserError
from curriculum.printable import printable_json

WIDTH = 150
"""Characters of the table where standard output is no terminal."""


def run_doctor(recipe: Path | None, overrides: Sequence[str], *, as_json: bool, say: Callable[[str], None]) -> None:
    """Look at the nodes of the Ray of RAY_ADDRESS or of this machine, or at this machine alone; print what is found.

    Args:
        recipe: what is to run; None to judge the nodes by what they were set up for.
        overrides: of the recipe.
        as_json: print one line of JSON instead of the table.
        say: prints a line.

    Raises:
        UserError: something is wrong; one line for each fault.
        RunFailed: the Ray of RAY_ADDRESS does not answer.
    """
    config = None if recipe is None else load_recipe(recipe, overrides)
    run_folder = str(Path("runs").absolute())
    with running_ray(say) as address:
        if address is None:
            nodes, silent = [Node(facts=node_facts(run_folder))], list[Silent]()
        else:
            nodes, silent = survey(run_folder, say)
    needs_gpu = None if config is None else config.device == "cuda"
    found = findings(nodes, silent, pins=pinned_versions(), needs_gpu=needs_gpu)
    faults = (*found.faults, *([] if config is None else _faults_of(config, nodes)))
    _print(nodes, silent, Findings(faults=faults, notes=found.notes), as_json=as_json)
    for note in found.notes:
        say(f"note: {note}")
    if faults:
        raise UserError(*faults)
    say("nothing is wrong")


def _faults_of(config: RunConfig, nodes: Sequence[Node]) -> list[str]:
    """Return why a recipe cannot run on these nodes: too few GPUs, or too little memory on them."""
    if config.device == "cpu":
        return []
    gpus = {node.facts.name: len(node.facts.gpus.gpus) if node.ray_gpus is None else node.ray_gpus for node in nodes}
    short = shortage(demands(config), gpus)
    faults = [f"device=cuda: {short}; add nodes, lower the counts, or set device=cpu"] if short else []
    try:
        check_cards(config, smallest_card(node.facts.gpus for node in nodes))
    except UserError as error:
        faults += error.args
    return faults


def _print(nodes: Sequence[Node], silent: Sequence[Silent], found: Findings, *, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"nodes": [asdict(node) for node in nodes], "silent": [asdict(node) for node in silent]}
        sys.stdout.write(printable_json(json.dumps({**facts, **asdict(found)})) + "\n")
        return
    is_terminal = sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(highlight=False, emoji=False, width=None if is_terminal else WIDTH)
    console.print(node_table(nodes, silent))
