"""Two nodes of a real Ray: what they tell, what is refused, and an engine that restarts elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.config import SyncConfig
from actors.weights.update import TensorRecord, WeightReceipt, WeightUpdate
from cluster.doctor.facts import node_facts
from cluster.processes.capacity import check_capacity
from cluster.processes.learner import RayLearner
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.processes.survey import check_nodes, survey
from cluster.recipe.load import load_recipe
from cluster.run.folder import RunFolder
from cluster.weights.sync import Probe, WeightSync
from cluster.weights.transports import HostMemory
from curriculum.errors import RunFailed

pytestmark = pytest.mark.integration

RECIPE = Path(__file__).parents[2] / "recipes" / "local.yaml"
ON_GPUS = ["device=cuda", "learner.num_ranks=1", "rollout.num_actors=1", "reward.judge={type: none}"]
START_S = 6.0
"""Longest start of an actor in these tests; an actor without a model starts in 1 to 3 s."""


@pytest.fixture(scope="module")
def two_nodes():
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    patch.delenv("RAY_ADDRESS", raising=False)
    small = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_gpus": 1})
    try:
        cluster.add_node(**{key: value for key, value in small.items() if key != "include_dashboard"}, num_gpus=3)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()


def slow_on_the_second(run_folder, address):
    own = ray.get_runtime_context().get_node_id()
    gpus = next(node["Resources"]["GPU"] for node in ray.nodes() if node["NodeID"] == own)
    if gpus == 3:
        time.sleep(60)
    return node_facts(run_folder, address)


def broken(run_folder, address):
    raise ModuleNotFoundError("No module named 'cluster'")


def test_every_node_tells_what_it_has(two_nodes, tmp_path):
    said = []
    nodes, silent = survey(str(tmp_path), said.append)
    assert silent == []
    assert [node.ray_gpus for node in nodes] == [1, 3]
    assert all(node.facts.versions["ray"] == ray.__version__ for node in nodes)
    assert all(node.object_store_bytes == 80 << 20 for node in nodes)


def test_a_node_that_does_not_answer_is_named_and_the_other_one_is_heard(two_nodes, tmp_path):
    nodes, silent = survey(str(tmp_path), lambda line: None, answer_s=8.0, ask=slow_on_the_second)
    assert [node.ray_gpus for node in nodes] == [1]
    assert [node.reason.partition(";")[0] for node in silent] == ["no answer within 8 s"]


def test_a_node_without_this_program_is_named(two_nodes, tmp_path):
    nodes, silent = survey(str(tmp_path), lambda line: None, ask=broken)
    assert nodes == []
    assert {node.reason for node in silent} == {
        "cannot tell what is there: ModuleNotFoundError: No module named 'cluster'; install the same environment on "
        "every node"
    }


def test_gpus_are_compared_node_by_node_and_without_those_in_use(two_nodes):
    check_capacity(load_recipe(RECIPE, [*ON_GPUS, "rollout.engine.tensor_parallel_size=3"]), lambda line: None)
    with pytest.raises(RunFailed, match=r"tensor_parallel_size=4\) take 4 GPUs each, on one node, and 0 of them"):
        check_capacity(load_recipe(RECIPE, [*ON_GPUS, "rollout.engine.tensor_parallel_size=4"]), lambda line: None)


def test_gpus_in_use_are_waited_for_and_then_named(two_nodes, monkeypatch):
    monkeypatch.setattr("cluster.processes.capacity.RELEASE_S", 2.0)
    holder = ray.remote(num_gpus=2)(Engine).remote()
    ray.get(holder.ready.remote())
    config, said = load_recipe(RECIPE, [*ON_GPUS, "rollout.engine.tensor_parallel_size=3"]), []
    try:
        with pytest.raises(RunFailed, match=r"free of them: .* take 3 GPUs each, on one node, and 0 of them"):
            check_capacity(config, said.append)
        assert said[0].startswith("waiting for GPUs that are in use: ")
    finally:
        ray.kill(holder)


def test_a_run_is_refused_on_nodes_without_a_driver_before_an_actor_starts(two_nodes, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RunFailed) as caught:
        check_nodes(load_recipe(RECIPE, ON_GPUS), folder, lambda line: None)
    assert len(caught.value.args) == 4, "torch and driver of two nodes"
    assert sum("no NVIDIA driver; install driver 580" in line for line in caught.value.args) == 2
    check_nodes(load_recipe(RECIPE), folder, lambda line: None)


# an engine that restarts on the other node while the learner is in an update


TENSOR = TensorRecord(name="a", dtype="float32", shape=(1,), num_bytes=4, checksum=5)


class Rank:
    """A rank without a model: an update takes until there is a file."""

    def update(self, learning_rate, gate):
        while not Path(gate).exists():
            time.sleep(0.05)
        return "report"

    def node_id(self):
        return ray.get_runtime_context().get_node_id()

    def publish_weights(self, version):
        return WeightUpdate(version=version, source="path", tensors=(TENSOR,))

    def put_weights(self, version, *, delta):
        values = (np.zeros(4, np.uint8),)
        return ray.put(WeightUpdate(version=version, source=values, tensors=(TENSOR,)))


class Engine:
    """An engine without a model, which Ray may start on any node."""

    def __init__(self):
        self.sources = []

    def ready(self):
        return 1

    def node_id(self):
        return ray.get_runtime_context().get_node_id()

    def load_weights(self, update):
        self.sources.append(update.source if isinstance(update.source, str) else "values")
        return WeightReceipt(version=update.version, tensors=update.tensors, pause_s=0.0)

    def loaded(self):
        return self.sources


def test_an_engine_that_restarts_on_another_node_waits_for_the_learners_update(two_nodes, tmp_path):
    gate = tmp_path / "done"
    log = []

    async def scenario():
        near = NodeAffinitySchedulingStrategy(two_nodes.head_node.node_id, soft=False)
        learner = RayLearner([ray.remote(num_cpus=0)(Rank).options(scheduling_strategy=near).remote()], reference=None)
        engine = ray.remote(num_cpus=0, max_restarts=1)(Engine).options(scheduling_strategy=near).remote()
        actor = SupervisedActor(
            "rollout-0",
            engine,
            startup_timeout_s=START_S,
            on_fault=lambda **fields: log.append(fields["action"]),
            after_restart=lambda name, handle: sync.bring_up_to_date(name, handle),
        )
        rollouts = RayRollouts([actor], [], on_fault=lambda **fields: None)
        transport = HostMemory(rollouts, learner, SyncConfig(timeout_s=START_S))
        probe = Probe(learner, rollouts, token_ids=(), every=10, dtypes=("fp32",), timeout_s=START_S)
        probe._num_updates = 1  # a rank without a model scores nothing
        sync = WeightSync(transport, probe, overlaps=True)
        await sync.send(1)
        await sync.settle()
        updating = asyncio.create_task(learner._all("update", 0.1, str(gate)))
        transport._learner_node = "the other one"  # as if Ray had restarted the engine there
        ray.kill(engine, no_restart=False)
        await is_back(engine)  # how long Ray takes for a new process is not what is tested
        repairing = asyncio.create_task(actor.repair(0, ActorUnavailableError("killed", actor_id=None)))
        await asyncio.sleep(START_S + 4)
        waited = not repairing.done() and not updating.done()
        gate.touch()
        await repairing
        return waited, await engine.loaded.remote(), (await updating)[0]

    async def is_back(engine):
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(ActorUnavailableError):
                    return await engine.ready.remote()
                await asyncio.sleep(0.1)

    waited, loaded, report = asyncio.run(scenario())
    assert waited
    assert loaded == ["values"]
    assert report == "report"
    assert log == ["restarting", "back"]
