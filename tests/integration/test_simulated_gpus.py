"""The actors of the GPU recipes find their places in a Ray whose GPUs are simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.harness.command import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def places():
    """Node and GPUs of every actor, by recipe and kind; a process of its own, since Ray keeps its state in it."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.harness.simulated_gpus"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_rank_engine_and_judge_of_one_card_are_on_the_only_free_gpu(places):
    found = places["one_gpu_1.5b"]
    (engine,), (judge,), (rank,) = found["engines"], found["judges"], found["ranks"]
    assert engine == judge == rank
    assert len(engine[1]) == 1


def test_one_node_gives_every_engine_a_gpu_and_the_judge_lives_beside_the_first(places):
    found = places["one_node_7b"]
    gpus = [(node, *own) for node, own in found["engines"]]
    assert len(set(gpus)) == 4
    assert [(node, *own) for node, own in found["judges"]] == gpus[:1]
    nodes = {node for group in found["nodes of the groups"] for node in group}
    assert (len(nodes), sorted(map(len, found["nodes of the groups"]))) == (1, [4, 4]), "ranks and engines on one node"


def test_four_nodes_hold_the_paper_s_run_with_its_ranks_on_two_whole_nodes(places):
    found = places["qwenlong_l1_32b_dapo"]
    (ranks,) = found["nodes of the groups"]
    assert sorted(Counter(ranks).values()) == [8, 8]
    assert all(node not in ranks for node, _ in found["engines"] + found["judges"])
    assert [len(own) for _, own in found["engines"]] == [4, 4, 4]
    taken = [(node, gpu) for node, own in found["engines"] + found["judges"] for gpu in own]
    assert len(set(taken)) == len(taken) == 13
