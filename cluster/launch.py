"""Ray and the actors of a run: joined or started, waited for, and ended again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayTaskError

from actors.rollout_actor import RolloutActor
from cluster.collective_delivery import CollectiveDelivery
from cluster.config import RunConfig
from cluster.handles import RayCurriculum, RayLearner, RayRollouts
from cluster.placement import check_capacity, judge_options, learner_options, rollout_options
from cluster.preparation import Prepared, local_or_hub
from cluster.run_folder import RunFolder
from cluster.supervision import ActorLost, SupervisedActor
from cluster.weight_delivery import WeightDelivery
from cluster.weight_sync import MAX_PROBE_GAP
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.task import TaskEntry
from curriculum.task_table import TaskColumns
from learner.learner_actor import LearnerActor
from reward.config import VllmJudge
from reward.judge_actor import JudgeActor

FIRST_DASHBOARD_PORT = 8265
PROBE_TOKENS = 64
"""Tokens that engines and learner both score to see that they hold the same weights."""
COORDINATOR = "coordinator"
"""Name under which the rollout actors find their coordinator, in the namespace of the run."""


class LaunchError(RuntimeError):
    """Ray or an actor could not be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The roles of a running cluster."""

    curriculum: RayCurriculum | None
    rollouts: RayRollouts
    learner: RayLearner
    pids: dict[str, int]
    """Process id of every actor with a model, by name."""


def check_ray(config: RunConfig) -> None:
    """Looks at the address to join, or at the port to open, before anything is written.

    Raises:
        LaunchError: nothing listens at RAY_ADDRESS, or this run would start a Ray whose dashboard port is taken.
    """
    address, port = _address_to_join(config), config.cluster.dashboard_port
    if address and not _listens(address):
        raise LaunchError(
            f"RAY_ADDRESS={address}: nothing listens there; start that Ray, or unset RAY_ADDRESS to start one here"
        )
    if not address and port is not None and not _port_is_free(port):
        raise LaunchError(f"cluster.dashboard_port={port}: already in use; choose another or remove the key")


@contextlib.contextmanager
def ray_session(config: RunConfig, folder: RunFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Joins the Ray of RAY_ADDRESS (as in a submitted job) or a running local one, else starts one for this run.

    Raises:
        LaunchError: the Ray to join does not answer, or none can be started.
        PlacementError: the cluster is too small.
    """
    address = _address_to_join(config)
    common: dict[str, Any] = {"log_to_driver": False, "namespace": folder.path.name, "logging_level": "ERROR"}
    if address:
        say(f"joining Ray at {address}")
        context = _init(address=address, **common)
    else:
        context = _start_local(config, common)
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")
    _link_logs(folder)
    try:
        check_capacity(config)
        yield
    finally:
        ray.shutdown()


@contextlib.asynccontextmanager
async def launch(
    config: RunConfig, prepared: Prepared, folder: RunFolder, on_fault: Callable[..., None]
) -> AsyncIterator[Processes]:
    """Starts all actors and yields their roles; ends them on the way out.

    Raises:
        LaunchError: an actor did not come up; the message holds its own error.
        JunkRewardError: the rewards pay for junk answers.
    """
    actors: list[Any] = []
    try:
        yield await _start_actors(config, prepared, folder, on_fault, actors)
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
        curriculum = RayCurriculum(coordinator)
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
                before_restart=curriculum.release if curriculum else None,
                after_restart=lambda restarted, name=name: learner.bring_up_to_date(name, restarted),
            )
            for name, handle in rollout_handles.items()
        ],
        [supervised(name, handle) for name, handle in judge_handles.items()],
        on_fault=on_fault,
    )
    reference = folder.reference if config.learner.needs_reference else None
    learner = RayLearner(ranks, _delivery(config, prepared, rollouts, ranks[0]), reference=reference)
    waiting = [
        *_named_ready(rollout_handles),
        *_named_ready(judge_handles),
        *await _start_ranks(config, prepared, ranks),
    ]
    pids = await _wait(waiting, config.cluster.startup_timeout_s)
    if rollout_handles:
        await rollouts.learn_slots()
    await _probe(judge_handles.values())
    return Processes(curriculum=curriculum, rollouts=rollouts, learner=learner, pids=pids)


def _delivery(config: RunConfig, prepared: Prepared, rollouts: RayRollouts, learner: Any) -> WeightDelivery:
    """The probe is the beginning of a prompt: text in the tokens of this very model."""
    dtypes = {config.learner.dtype, config.rollout.engine.dtype}
    arguments: dict[str, Any] = {
        "learner": learner,
        "config": config.rollout.sync,
        "probe_ids": prepared.tasks[0].prompt_ids[:PROBE_TOKENS].tolist() if prepared.tasks else (),
        "max_probe_gap": max(MAX_PROBE_GAP[dtype] for dtype in dtypes),
    }
    if config.weight_transport == "host_memory":
        return WeightDelivery(rollouts, **arguments)
    workers = config.rollout.engine.tensor_parallel_size
    return CollectiveDelivery(rollouts, **arguments, workers_per_engine=workers)


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
        reward = reward.model_copy(update={"judge": judge.model_copy(update={"model": local_or_hub(judge.model)})})
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
                sft=config.sft if config.sft.epochs else None,
                model_path=prepared.model_path,
                seed=config.seed,
                on_gpu=config.device == "cuda",
                trust_remote_code=config.model.trust_remote_code,
                delta=config.rollout.sync.delta,
            ),
        )
        for index, rank in enumerate(ranks)
    ]


async def _probe(judges: Iterable[Any]) -> None:
    """Lets every judge refuse rewards that pay for junk; its error arrives without the remote traceback."""
    try:
        await asyncio.gather(*[judge.probe.remote() for judge in judges])
    except RayTaskError as error:
        raise error.cause from None


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
        raise LaunchError(
            f"not all of {names} were ready within cluster.startup_timeout_s={timeout_s:.0f}; "
            "raise it or read their logs under the run's logs folder"
        ) from error


async def _named(name: str, ref: Any) -> Any:
    try:
        return await ref
    except (ActorDiedError, RayTaskError) as error:
        raise LaunchError(f"{name} did not start: {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    """The last line of a remote traceback, which holds the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else type(error).__name__)


def _start_local(config: RunConfig, common: dict[str, Any]) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    return _init(
        address="local",
        num_cpus=config.cluster.num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=config.cluster.dashboard_port or _free_port(FIRST_DASHBOARD_PORT),
        object_store_memory=config.cluster.object_store_bytes,
        **common,
    )


def _init(**arguments: Any) -> Any:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return ray.init(**arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LaunchError(
            f"Ray at {arguments['address']}: {reason}; unset RAY_ADDRESS or set cluster.address=local to start one here"
        ) from error


def _address_to_join(config: RunConfig) -> str | None:
    return os.environ.get("RAY_ADDRESS") or (_running_address() if config.cluster.address == "auto" else None)


def _running_address() -> str | None:
    """Address that `ray start --head` left behind, if something still listens there."""
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if not note.is_file():
        return None
    address = note.read_text(encoding="utf-8").strip()
    return address if _listens(address) else None


def _listens(address: str) -> bool:
    """Whether something accepts connections at host:port; an address without a port (`auto`) is Ray's to judge."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _free_port(first: int) -> int:
    return next(port for port in range(first, first + 200) if _port_is_free(port))


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _global_node() -> Any:
    """Ray's own record of this node; its log folder has no public accessor."""
    from ray._private import worker

    return worker._global_node


def _link_logs(folder: RunFolder) -> None:
    """A link in the run folder to the logs of this Ray session, where every actor writes."""
    session = Path(_global_node().get_logs_dir_path())
    link = folder.logs / f"ray-{session.parent.name}"
    folder.logs.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(session)


__all__ = ["ActorLost", "LaunchError", "Processes", "check_ray", "launch", "ray_session"]
