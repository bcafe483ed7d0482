"""The actors of a run: started, waited for, and ended again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from actors.model_folder import folder_or_hub_id
from actors.rollout_actor import RolloutActor
from cluster.processes.curriculum import ray_curriculum
from cluster.processes.learner import RayLearner
from cluster.processes.placement import judge_options, learner_options, rollout_options
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.recipe.config import RunConfig
from cluster.recipe.preparation import Prepared
from cluster.roles import Curriculum
from cluster.run.folder import RunFolder
from cluster.weights.sync import MAX_PROBE_GAP, Probe, WeightSync
from cluster.weights.transports import Collective, HostMemory
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.errors import RunFailed, one_line
from curriculum.task import TaskEntry
from curriculum.task_table import TaskColumns
from learner.learner_actor import LearnerActor
from reward.config import VllmJudge
from reward.judge_actor import JudgeActor

PROBE_TOKENS = 64
"""Tokens that engines and learner both score to see that they hold the same weights."""
COORDINATOR = "coordinator"
"""Name under which the rollout actors find their coordinator, in the namespace of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The roles of a running cluster."""

    curriculum: Curriculum | None
    rollouts: RayRollouts
    learner: RayLearner
    weights: WeightSync
    pids: dict[str, int]
    """Process id of every actor with a model, by name."""


@contextlib.asynccontextmanager
async def launch(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None]
) -> AsyncIterator[Processes]:
    """Starts all actors and yields their roles; ends them on the way out.

    Raises:
        RunFailed: an actor did not come up (the message holds its own error), or Ray lost a process or a value that
            nobody can do without.
        UserError: the rewards pay for junk answers.
    """
    actors: list[Any] = []
    try:
        yield await _start_actors(config, prepared, folder, on_fault, actors)
    except RayTaskError:
        raise  # an actor raised it, and it is told as if it had been raised here
    except RayError as error:
        raise RunFailed(f"{one_line(error)}; read the logs of the actors in logs/, then go on with --resume") from error
    finally:
        for actor in actors:
            ray.kill(actor)


async def _start_actors(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None], actors: list[Any]
) -> Processes:
    def create(cls: type, name: str, options: dict[str, Any], /, **arguments: Any) -> Any:
        handle = ray.remote(cls).options(name=name, **options).remote(**arguments)
        actors.append(handle)
        return handle

    def supervised(name: str, handle: Any, **hooks: Any) -> SupervisedActor:
        timeout = config.cluster.startup_timeout_s
        return SupervisedActor(name, handle, startup_timeout_s=timeout, on_fault=on_fault, **hooks)

    curriculum = coordinator = None
    if prepared.tasks:
        coordinator = create(
            CoordinatorActor,
            COORDINATOR,
            {"num_cpus": 0},
            tasks=[TaskEntry.of(task) for task in prepared.tasks],
            config=config.curriculum,
            seed=config.seed,
            columns=[ray.put(TaskColumns.of(prepared.tasks))],
        )
        curriculum = ray_curriculum(coordinator)
    rollout_handles = {} if coordinator is None else _create_rollouts(config, prepared, create)
    judge_handles = {} if coordinator is None else _create_judges(config, prepared, create)
    ranks = [
        create(LearnerActor, f"learner-{rank}", options, rank=rank, num_ranks=config.learner.num_ranks)
        for rank, options in enumerate(learner_options(config))
    ]
    rollouts = RayRollouts(
        [
            supervised(
                name,
                handle,
                before_restart=coordinator.release.remote if coordinator else None,
                after_restart=lambda restarted, name=name: weights.bring_up_to_date(name, restarted),
            )
            for name, handle in rollout_handles.items()
        ],
        [supervised(name, handle) for name, handle in judge_handles.items()],
        on_fault=on_fault,
    )
    reference = folder.reference if config.learner.needs_reference else None
    learner = RayLearner(ranks, reference=reference)
    weights = _weight_sync(config, prepared, rollouts, learner)
    timeout_s = config.cluster.startup_timeout_s
    ranks_ready = await _start_ranks(config, prepared, ranks)
    pids = await _wait(_named_ready(judge_handles), timeout_s)
    await asyncio.gather(*[judge.check_for_junk.remote() for judge in judge_handles.values()])  # while engines start
    pids |= await _wait([*_named_ready(rollout_handles), *ranks_ready], timeout_s)
    if rollout_handles:
        await rollouts.learn_slots()
    return Processes(curriculum=curriculum, rollouts=rollouts, learner=learner, weights=weights, pids=pids)


def _weight_sync(config: RunConfig, prepared: Prepared, rollouts: RayRollouts, learner: RayLearner) -> WeightSync:
    """The probe is the beginning of a prompt: text in the tokens of this very model."""
    sync = config.rollout.sync
    dtypes = {config.learner.dtype, config.rollout.engine.dtype}
    probe = Probe(
        learner,
        rollouts,
        token_ids=prepared.tasks[0].prompt_ids[:PROBE_TOKENS].tolist() if prepared.tasks else (),
        every=sync.probe_every,
        max_gap=max(MAX_PROBE_GAP[dtype] for dtype in dtypes),
        timeout_s=sync.timeout_s,
    )
    if config.weight_transport == "host_memory":
        transport = HostMemory(rollouts, learner, sync)
    else:
        workers = config.rollout.engine.tensor_parallel_size
        transport = Collective(rollouts, learner, sync, workers_per_engine=workers)
    return WeightSync(transport, probe, overlaps=config.rollout.max_policy_lag > 0)


def _create_rollouts(config: RunConfig, prepared: Prepared, create: Any) -> dict[str, Any]:
    return {
        name: create(
            RolloutActor,
            name,
            rollout_options(config),
            name=name,
            model_path=prepared.model_path,
            config=config.rollout,
            coordinator=COORDINATOR,
            max_model_len=config.max_model_len,
            run_seed=config.seed,
            engine_seed=config.seed + index,
            on_gpu=config.device == "cuda",
            trust_remote_code=config.model.trust_remote_code,
        )
        for index, name in enumerate(f"rollout-{i}" for i in range(config.rollout.num_actors))
    }


def _create_judges(config: RunConfig, prepared: Prepared, create: Any) -> dict[str, Any]:
    judge = config.reward.judge
    reward = config.reward
    if isinstance(judge, VllmJudge):
        model = folder_or_hub_id(judge.model, key="reward.judge.model")
        reward = reward.model_copy(update={"judge": judge.model_copy(update={"model": model})})
    replicas = judge.num_replicas if isinstance(judge, VllmJudge) else 1
    return {
        name: create(
            JudgeActor,
            name,
            judge_options(config),
            name=name,
            config=reward,
            policy_path=prepared.model_path,
            on_gpu=config.device == "cuda",
            trust_remote_code=config.model.trust_remote_code,
        )
        for name in (f"judge-{i}" for i in range(replicas))
    }


async def _start_ranks(config: RunConfig, prepared: Prepared, ranks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Tells every rank where the ranks meet; returns what to wait for."""
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
                delta=config.rollout.sync.delta,
            ),
        )
        for index, rank in enumerate(ranks)
    ]


def _named_ready(handles: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, handle.ready.remote()) for name, handle in handles.items()]


async def _wait(waiting: Sequence[tuple[str, Any]], timeout_s: float) -> dict[str, int]:
    """Process ids by name, once all are ready."""
    try:
        async with asyncio.timeout(timeout_s):
            pids = await asyncio.gather(*[_named(name, ref) for name, ref in waiting])
            return {name: pid for (name, _), pid in zip(waiting, pids, strict=True)}
    except TimeoutError as error:
        names = ", ".join(name for name, _ in waiting)
        raise RunFailed(
            f"not all of {names} were ready within cluster.startup_timeout_s={timeout_s:.0f}; "
            "raise it or read their logs under the run's logs folder"
        ) from error


async def _named(name: str, ref: Any) -> Any:
    try:
        return await ref
    except (ActorDiedError, RayTaskError) as error:
        raise RunFailed(f"{name} did not start: {one_line(error)}") from error
