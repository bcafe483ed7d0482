"""The actors of a run: started, waited for, and ended again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from actors.model_folder import folder_or_hub_id
from actors.rollout_actor import RolloutActor
from cluster.processes.curriculum import ray_curriculum
from cluster.processes.learner import RayLearner
from cluster.processes.placement import coordinator_options, judge_options, learner_options, rollout_options
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
from curriculum.secrets import endpoint_secrets, hub_secrets
from curriculum.task import TaskEntry
from curriculum.task_table import TaskColumns
from learner.learner_actor import LearnerActor
from reward.config import OpenAIJudge, VllmJudge
from reward.judge_actor import JudgeActor

_T = TypeVar("_T")

PROBE_TOKENS = 64
"""Tokens that engines and learner both score, which shows whether they hold the same weights."""
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


class _Actors:
    """Every actor of a run, so that all of them can be ended."""

    def __init__(self, config: RunConfig, on_fault: Callable[..., None]) -> None:
        self._config = config
        self._on_fault = on_fault
        self._handles: list[Any] = []

    def create(self, cls: type, name: str, options: dict[str, Any], /, **arguments: Any) -> Any:
        """Start an actor of `cls` under `name`; return its handle."""
        handle = ray.remote(cls).options(name=name, **options).remote(**arguments)
        self._handles.append(handle)
        return handle

    def supervised(
        self,
        handles: Mapping[str, Any],
        *,
        before_restart: Callable[[str], Awaitable[Any]] | None = None,
        after_restart: Callable[[str, Any], Awaitable[None]] | None = None,
    ) -> list[SupervisedActor]:
        """Return named actors under supervision; see `SupervisedActor`."""
        return [
            SupervisedActor(
                name,
                handle,
                startup_timeout_s=self._config.cluster.startup_timeout_s,
                on_fault=self._on_fault,
                before_restart=before_restart,
                after_restart=after_restart,
            )
            for name, handle in handles.items()
        ]

    def end(self) -> None:
        """End all of them."""
        for handle in self._handles:
            ray.kill(handle)


@contextlib.asynccontextmanager
async def launch(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None]
) -> AsyncGenerator[Processes]:
    """Start all actors and yield their roles; end them on the way out.

    Raises:
        RunFailed: an actor did not come up (the message holds its own error), or Ray lost a process or a value that
            the run needs.
        UserError: the rewards pay for meaningless answers.
    """
    actors = _Actors(config, on_fault)
    try:
        yield await _start_actors(config, prepared, folder, on_fault, actors)
    except RayTaskError:
        raise  # an error that an actor raised is reported like one that was raised here
    except RayError as error:
        raise RunFailed(f"{one_line(error)}; read the logs of the actors in logs/, then go on with --resume") from error
    finally:
        actors.end()


async def _start_actors(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None], actors: _Actors
) -> Processes:
    coordinator = _create_coordinator(config, prepared, actors) if prepared.tasks else None
    engines = _create_rollouts(config, prepared, actors) if coordinator else {}
    judges = _create_judges(config, prepared, actors) if coordinator else {}
    ranks = _create_ranks(config, actors)
    rollouts = RayRollouts(
        actors.supervised(
            engines,
            before_restart=coordinator.release.remote if coordinator else None,
            after_restart=lambda name, handle: weights.bring_up_to_date(name, handle),
        ),
        actors.supervised(judges),
        on_fault=on_fault,
    )
    learner = RayLearner(ranks, reference=folder.reference if config.learner.needs_reference else None)
    weights = _weight_sync(config, prepared, rollouts, learner)
    ranks_ready = await _start_ranks(config, prepared, ranks)
    pids = await _wait_until_ready(config, engines, judges, ranks_ready)
    if engines:
        await rollouts.learn_slots()
    curriculum = ray_curriculum(coordinator) if coordinator else None
    return Processes(curriculum=curriculum, rollouts=rollouts, learner=learner, weights=weights, pids=pids)


async def _wait_until_ready(
    config: RunConfig,
    engines: Mapping[str, Any],
    judges: Mapping[str, Any],
    ranks_ready: Sequence[tuple[str, Awaitable[int]]],
) -> dict[str, int]:
    """Return the process id of every actor with a model; check the rewards while engines and ranks start."""
    timeout_s = config.cluster.startup_timeout_s
    pids = await _wait(_named_ready(judges), timeout_s)
    await asyncio.gather(*[judge.check_for_junk.remote() for judge in judges.values()])
    return pids | await _wait([*_named_ready(engines), *ranks_ready], timeout_s)


def _weight_sync(config: RunConfig, prepared: Prepared, rollouts: RayRollouts, learner: RayLearner) -> WeightSync:
    """Build the weight updates; their probe is the beginning of a prompt: text in the tokens of this very model."""
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


def _create_coordinator(config: RunConfig, prepared: Prepared, actors: _Actors) -> Any:
    return actors.create(
        CoordinatorActor,
        COORDINATOR,
        coordinator_options(),
        tasks=[TaskEntry.of(task) for task in prepared.tasks],
        config=config.curriculum,
        seed=config.seed,
        columns=[ray.put(TaskColumns.of(prepared.tasks))],
    )


def _create_ranks(config: RunConfig, actors: _Actors) -> list[Any]:
    return [
        actors.create(LearnerActor, f"learner-{rank}", options, rank=rank, num_ranks=config.learner.num_ranks)
        for rank, options in enumerate(learner_options(config))
    ]


def _create_rollouts(config: RunConfig, prepared: Prepared, actors: _Actors) -> dict[str, Any]:
    return {
        name: actors.create(
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
            secrets=hub_secrets(prepared.model_path),
        )
        for index, name in enumerate(f"rollout-{i}" for i in range(config.rollout.num_actors))
    }


def _create_judges(config: RunConfig, prepared: Prepared, actors: _Actors) -> dict[str, Any]:
    judge = config.reward.judge
    reward, secrets = config.reward, hub_secrets(prepared.model_path)
    if isinstance(judge, OpenAIJudge):
        secrets |= endpoint_secrets(judge.api_key_env, name="reward.judge.api_key_env")
    if isinstance(judge, VllmJudge):
        model = folder_or_hub_id(judge.model, key="reward.judge.model")
        secrets |= hub_secrets(model)
        reward = reward.model_copy(update={"judge": judge.model_copy(update={"model": model})})
    replicas = judge.num_replicas if isinstance(judge, VllmJudge) else 1
    return {
        name: actors.create(
            JudgeActor,
            name,
            judge_options(config),
            name=name,
            config=reward,
            policy_path=prepared.model_path,
            on_gpu=config.device == "cuda",
            trust_remote_code=config.model.trust_remote_code,
            secrets=secrets,
        )
        for name in (f"judge-{i}" for i in range(replicas))
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
                delta=config.rollout.sync.delta,
                secrets=hub_secrets(prepared.model_path),
            ),
        )
        for index, rank in enumerate(ranks)
    ]


def _named_ready(handles: Mapping[str, Any]) -> list[tuple[str, Awaitable[int]]]:
    return [(name, handle.ready.remote()) for name, handle in handles.items()]


async def _wait(waiting: Sequence[tuple[str, Awaitable[int]]], timeout_s: float) -> dict[str, int]:
    """Return the process ids by name, once all are ready."""
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


async def _named(name: str, reply: Awaitable[_T]) -> _T:
    try:
        return await reply
    except (ActorDiedError, RayTaskError) as error:
        raise RunFailed(f"{name} did not start: {one_line(error)}") from error
