"""The actors of a run: started, waited for, and ended again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from actors.config import RolloutConfig
from actors.model_folder import folder_or_hub_id, model_digest
from actors.rollout_actor import RolloutActor
from cluster.processes.actor_set import ActorSet
from cluster.processes.curriculum import ray_curriculum, released_by
from cluster.processes.disks import NOTICE_S, ModelSight, look_from_nodes
from cluster.processes.heartbeats import COORDINATOR, Watch
from cluster.processes.learner import HEARTBEAT, RayLearner
from cluster.processes.nodes import nodes_for_actors
from cluster.processes.placement import actor_options, coordinator_options
from cluster.processes.rollouts import RayRollouts
from cluster.processes.turns import Side, Turns
from cluster.recipe.config import RunConfig
from cluster.recipe.preparation import Prepared
from cluster.recipe.shared_gpus import engine_share, resting_share, shares_gpus, takes_turns, working_share
from cluster.roles import Curriculum
from cluster.run.folder import RunFolder
from cluster.run.recovery import RestartFromCheckpoint
from cluster.run.reference import Reference
from cluster.run.stopping import StopSignal
from cluster.run.waits import Wait
from cluster.weights.sync import Probe, WeightSync
from cluster.weights.transports import Collective, HostMemory
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.errors import RunFailed, one_line, root_cause
from curriculum.secrets import endpoint_secrets, hub_secrets, storage_secrets
from curriculum.shared_folder import SharedFolder
from curriculum.task import TaskEntry
from curriculum.task_table import TaskColumns
from learner.gpu_share import GpuShare
from learner.learner_actor import LearnerActor
from reward.config import OpenAIJudge, VllmJudge
from reward.judge_actor import JudgeActor

_T = TypeVar("_T")
_OTHER_DIED = ("The actor died unexpectedly", "ActorDiedError", "ActorUnavailableError")
"""Words of Ray in the error of an actor that could not start because another one died."""

PROBE_TOKENS = 64
"""Tokens that engines and learner both score, which shows whether they hold the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The roles of a running cluster."""

    curriculum: Curriculum | None
    rollouts: RayRollouts
    learner: RayLearner
    weights: WeightSync
    pids: dict[str, int]
    """Process id of every actor, by name."""

    def facts(self) -> dict[str, Any]:
        """Return what a diagnosis tells of the loop: versions and groups in flight."""
        last = self.weights.last
        return {
            "policy_version in all engines": None if last is None else last.version,
            "groups in flight": self.rollouts.in_flight,
            "slots of the engines": self.rollouts.num_slots,
        }


@contextlib.asynccontextmanager
async def launch(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    on_fault: Callable[..., None],
    watch: Watch,
    stop: asyncio.Event,
) -> AsyncGenerator[Processes]:
    """Start all actors and yield their roles; end them on the way out.

    Raises:
        Interrupted: `stop` was set before all of them were ready.
        RunFailed: an actor did not come up (the message holds its own error).
        RestartFromCheckpoint: Ray lost a process or a value that the run needs; all actors are gone.
        UserError: the rewards pay for meaningless answers.
    """
    actors = ActorSet(config, on_fault, watch)
    is_restart = False
    try:
        starting = _start_actors(config, prepared, folder, on_fault, actors)
        yield await watch.guard(StopSignal(stop).unless_stopped(starting))
    except RestartFromCheckpoint:
        is_restart = True
        raise
    except RayError as error:
        if isinstance(error, RayTaskError) and not isinstance(root_cause(error), RayError):
            raise  # an error that an actor raised is reported like one that was raised here
        is_restart = True
        raise RestartFromCheckpoint(one_line(error)) from error
    finally:
        actors.end()
        if is_restart:
            await actors.gone()


async def _start_actors(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None], actors: ActorSet
) -> Processes:
    coordinator = _create_coordinator(config, prepared, actors) if prepared.tasks else None
    with actors.waits.on(f"placement of {config.learner.num_ranks} learner ranks", is_bounded=True):
        options = await actor_options(config)
    ranks = _create_ranks(config, actors, options.ranks)
    await _look_at_disks(config, prepared, folder, ranks, actors)
    engines = _create_rollouts(config, prepared, actors, options.engines) if coordinator else {}
    judges = _create_judges(config, prepared, actors, options.judges) if coordinator else {}
    turns = Turns(actors.waits) if takes_turns(config) and engines else None
    rollouts: RayRollouts = RayRollouts(
        actors.supervised(
            engines,
            before_restart=lambda name: rollouts.take_back(name),
            after_restart=lambda name, handle: weights.bring_up_to_date(name, handle),
        ),
        actors.supervised(judges),
        on_fault=on_fault,
        waits=actors.waits,
        release=released_by(coordinator) if coordinator else None,
        turns=turns,
    )
    storage = config.checkpoint.storage
    reference = Reference(folder.reference, storage=storage) if config.learner.needs_reference else None
    learner = RayLearner(ranks, reference=reference, waits=actors.waits, turns=turns)
    weights = _weight_sync(config, prepared, rollouts, learner)
    if turns is not None:
        turns.take(rollouts, learner)
    start_ranks = partial(_start_ranks, config, prepared, ranks)
    with actors.waits.on("actors to start", is_bounded=True) as wait:
        pids = await _wait_until_ready(config, engines, judges, start_ranks, wait, turns)
    if engines:
        await rollouts.learn_slots()
    if coordinator:
        pids[COORDINATOR] = (await coordinator.heartbeat.options(concurrency_group=HEARTBEAT).remote()).pid
    curriculum = ray_curriculum(coordinator) if coordinator else None
    return Processes(curriculum=curriculum, rollouts=rollouts, learner=learner, weights=weights, pids=pids)


async def _look_at_disks(
    config: RunConfig, prepared: Prepared, folder: RunFolder, ranks: Sequence[Any], actors: ActorSet
) -> None:
    """Check, before any actor loads a model, that all nodes see what the driver sees; see `look_from_nodes`."""
    addresses = nodes_for_actors(config)
    rank_nodes = set(addresses)
    if len(addresses) > 1:
        with actors.waits.on("learner ranks to be placed", is_bounded=True, notice_s=NOTICE_S):
            placed = [_named(f"learner-{index}", rank.node_id.remote()) for index, rank in enumerate(ranks)]
            rank_nodes = set(await asyncio.gather(*placed))
    await look_from_nodes(
        addresses,
        await asyncio.to_thread(_models_to_see, config, prepared),
        _folders_to_see(config, folder),
        rank_nodes,
        actors.waits,
        storage_secrets(config.checkpoint.storage),
    )


def _models_to_see(config: RunConfig, prepared: Prepared) -> list[ModelSight]:
    """Return the models that the actors read from a folder; those of the hub are fetched by each node."""
    paths = {"model.path": prepared.model_path}
    if prepared.tasks and isinstance(config.reward.judge, VllmJudge):
        paths["reward.judge.model"] = folder_or_hub_id(config.reward.judge.model, key="reward.judge.model")
    return [
        ModelSight(key=key, path=path, digest=prepared.inputs.get(key) or model_digest(path))
        for key, path in paths.items()
        if Path(path).is_dir()
    ]


def _folders_to_see(config: RunConfig, folder: RunFolder) -> dict[str, SharedFolder]:
    """Return the folders where the ranks of the learner write, by what names them."""
    if config.checkpoint.storage is not None:
        return {"checkpoint.storage": SharedFolder(config.checkpoint.storage) / folder.path.name}
    places = {"run folder": folder.path} if config.learner.needs_reference else {}
    places["checkpoints of the run folder"] = folder.checkpoints.path
    return {name: SharedFolder(str(path)) for name, path in places.items()}


async def _wait_until_ready(
    config: RunConfig,
    engines: Mapping[str, Any],
    judges: Mapping[str, Any],
    start_ranks: Callable[[], Awaitable[Sequence[tuple[str, Awaitable[int]]]]],
    wait: Wait,
    turns: Turns | None,
) -> dict[str, int]:
    """Return the process id of every actor with a model; check the rewards while engines and ranks start.

    On shared GPUs they start one after another: vLLM measures the memory of the GPU while it loads, and the ranks load
    while the engines sleep.
    """
    timeout_s = config.cluster.startup_timeout_s
    ranks_ready = await start_ranks() if turns is None else ()
    pids = await _wait(_named_ready(judges), timeout_s, wait)
    await asyncio.gather(*[judge.check_for_junk.remote() for judge in judges.values()])
    pids |= await _wait([*_named_ready(engines), *ranks_ready], timeout_s, wait)
    if turns is None:
        return pids
    async with turns.of(Side.LEARNER):
        return pids | await _wait(await start_ranks(), timeout_s, wait)


def _weight_sync(config: RunConfig, prepared: Prepared, rollouts: RayRollouts, learner: RayLearner) -> WeightSync:
    """Build the weight updates; their probe is the beginning of a prompt: text in the tokens of this very model."""
    sync = config.rollout.sync
    probe = Probe(
        learner,
        rollouts,
        token_ids=prepared.tasks[0].prompt_ids[:PROBE_TOKENS].tolist() if prepared.tasks else (),
        every=sync.probe_every,
        dtypes=(config.learner.dtype, config.rollout.engine.dtype),
        timeout_s=sync.timeout_s,
    )
    if config.weight_transport == "host_memory":
        transport = HostMemory(rollouts, learner, sync)
    else:
        workers = config.rollout.engine.tensor_parallel_size
        transport = Collective(rollouts, learner, sync, workers_per_engine=workers)
    return WeightSync(transport, probe, overlaps=config.rollout.max_policy_lag > 0)


def _create_coordinator(config: RunConfig, prepared: Prepared, actors: ActorSet) -> Any:
    return actors.create(
        CoordinatorActor,
        COORDINATOR,
        coordinator_options(),
        tasks=[TaskEntry.of(task) for task in prepared.tasks],
        config=config.curriculum,
        seed=config.seed,
        columns=[ray.put(TaskColumns.of(prepared.tasks))],
    )


def _create_ranks(config: RunConfig, actors: ActorSet, options: Sequence[dict[str, Any]]) -> list[Any]:
    return [
        actors.create(LearnerActor, f"learner-{rank}", own, rank=rank, num_ranks=config.learner.num_ranks)
        for rank, own in enumerate(options)
    ]


def _create_rollouts(
    config: RunConfig, prepared: Prepared, actors: ActorSet, options: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        name: actors.create(
            RolloutActor,
            name,
            own,
            name=name,
            model_path=prepared.model_path,
            config=_rollout_config(config, index),
            coordinator=COORDINATOR,
            max_model_len=config.max_model_len,
            run_seed=config.seed,
            engine_seed=config.seed + index,
            on_gpu=config.device == "cuda",
            trust_remote_code=config.model.trust_remote_code,
            yarn=config.model.yarn,
            secrets=hub_secrets(prepared.model_path),
            loads_at_once=not shares_gpus(config),
            sleeps=takes_turns(config),
        )
        for index, (name, own) in enumerate((f"rollout-{i}", own) for i, own in enumerate(options))
    }


def _rollout_config(config: RunConfig, index: int) -> RolloutConfig:
    """Return the settings of one engine: the longest answer of any phase, and its own share of its GPU."""
    engine = config.rollout.engine.model_copy(update={"gpu_memory_utilization": engine_share(config, index)})
    return config.rollout.model_copy(update={"max_response_tokens": config.max_response_tokens, "engine": engine})


def _create_judges(
    config: RunConfig, prepared: Prepared, actors: ActorSet, options: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    judge = config.reward.judge
    reward, secrets, yarn = config.reward, hub_secrets(prepared.model_path), None
    if isinstance(judge, OpenAIJudge):
        secrets |= endpoint_secrets(judge.api_key_env, name="reward.judge.api_key_env")
    if isinstance(judge, VllmJudge):
        model = folder_or_hub_id(judge.model, key="reward.judge.model")
        secrets |= hub_secrets(model)
        yarn = config.model.yarn if model == prepared.model_path else None
        reward = reward.model_copy(update={"judge": judge.model_copy(update={"model": model})})
    return {
        name: actors.create(
            JudgeActor,
            name,
            own,
            name=name,
            config=reward,
            policy_path=prepared.model_path,
            on_gpu=config.device == "cuda",
            trust_remote_code=config.model.trust_remote_code,
            yarn=yarn,
            secrets=secrets,
        )
        for name, own in ((f"judge-{i}", own) for i, own in enumerate(options))
    }


async def _start_ranks(config: RunConfig, prepared: Prepared, ranks: Sequence[Any]) -> list[tuple[str, Awaitable[int]]]:
    """Give every rank the address at which the ranks meet; return the name and the reply of each."""
    master = await _named("learner-0", ranks[0].rendezvous.remote())
    return [
        (
            f"learner-{index}",
            rank.start.remote(
                master=master,
                config=config.learner,
                model_path=prepared.model_path,
                seed=config.seed,
                on_gpu=config.device == "cuda",
                trust_remote_code=config.model.trust_remote_code,
                yarn=config.model.yarn,
                delta=config.rollout.sync.delta,
                secrets=hub_secrets(prepared.model_path) | storage_secrets(config.checkpoint.storage),
                gpu_share=_gpu_share(config, index),
            ),
        )
        for index, rank in enumerate(ranks)
    ]


def _gpu_share(config: RunConfig, rank: int) -> GpuShare | None:
    """Return the part of a rank on a GPU that it shares; None where it has one of its own, or none."""
    if config.device == "cpu" or not takes_turns(config):
        return None
    return GpuShare(at_work=working_share(config, rank), at_rest=resting_share(config))


def _named_ready(handles: Mapping[str, Any]) -> list[tuple[str, Awaitable[int]]]:
    return [(name, handle.ready.remote()) for name, handle in handles.items()]


async def _wait(waiting: Sequence[tuple[str, Awaitable[int]]], timeout_s: float, wait: Wait) -> dict[str, int]:
    """Return the process ids by name, once all are ready; `wait` names those that are not."""
    missing = [name for name, _ in waiting]

    async def ready(name: str, reply: Awaitable[int]) -> int:
        pid = await _named(name, reply)
        missing.remove(name)
        wait.what = f"{', '.join(missing) or 'actors'} to start"
        return pid

    try:
        async with asyncio.timeout(timeout_s):
            pids = await asyncio.gather(*[ready(name, reply) for name, reply in waiting])
            return {name: pid for (name, _), pid in zip(waiting, pids, strict=True)}
    except TimeoutError as error:
        names = ", ".join(missing)
        raise RunFailed(
            f"not all of {names} were ready within cluster.startup_timeout_s={timeout_s:.0f}; "
            "raise it or read their logs under the run's logs folder"
        ) from error


async def _named(name: str, reply: Awaitable[_T]) -> _T:
    try:
        return await reply
    except (ActorDiedError, RayTaskError) as error:
        if not isinstance(error, RayTaskError) and not error.actor_init_failed:
            raise RestartFromCheckpoint(f"{name} died while it started", part=name.partition("-")[0]) from error
        reason = one_line(error)
        if any(words in reason for words in _OTHER_DIED):  # one that it calls, as on a node that was lost just now
            raise RestartFromCheckpoint(f"{name} did not start: what it calls died: {reason}") from error
        raise RunFailed(f"{name} did not start: {reason}") from error
