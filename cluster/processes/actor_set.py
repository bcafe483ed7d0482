"""All actors of a run: created, watched from then on, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.processes.heartbeats import Watch, WatchedActor
from cluster.processes.learner import HEARTBEAT
from cluster.processes.nodes import kill_here, kill_on_node
from cluster.processes.supervision import SupervisedActor
from cluster.recipe.config import RunConfig
from curriculum.heartbeat import Lifeline

_ray: Any = ray  # where its declarations have no complete types

END_S = 30.0
"""Longest wait for actors that were ended to be gone."""


class ActorSet:
    """Every actor of a run, so that all of them can be watched and ended."""

    def __init__(self, config: RunConfig, on_fault: Callable[..., None], watch: Watch) -> None:
        self._config = config
        self._on_fault = on_fault
        self._watch = watch
        self.waits = watch.waits
        self._handles: dict[str, Any] = {}
        self._groups: set[PlacementGroup] = set()
        self._watched: list[WatchedActor] = []
        """As they were when they were ended."""
        cluster = config.cluster
        self._lifeline = Lifeline(orphan_s=cluster.orphan_s, startup_s=cluster.startup_timeout_s)

    def create(self, cls: Any, name: str, options: dict[str, Any], /, **arguments: Any) -> Any:
        """Start an actor of `cls` under `name`; return its handle. From now on its heartbeats are watched."""
        is_async = inspect.iscoroutinefunction(cls.heartbeat)
        remote = _ray.remote(cls) if is_async else _ray.remote(concurrency_groups={HEARTBEAT: 1})(cls)
        handle = remote.options(name=name, **options).remote(lifeline=self._lifeline, **arguments)
        self._handles[name] = handle
        if isinstance(place := options.get("scheduling_strategy"), PlacementGroupSchedulingStrategy):
            self._groups.add(place.placement_group)
        heartbeat = handle.heartbeat if is_async else handle.heartbeat.options(concurrency_group=HEARTBEAT)
        self._watch.add(name, heartbeat.remote)
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
                waits=self.waits,
            )
            for name, handle in handles.items()
        ]

    def end(self) -> None:
        """End all of them; without Ray's head those on other nodes end by themselves, once the driver asks no more."""
        self._watched = self._watch.forget_all()
        self._watch.check_node()
        if not self._watch.head_is_lost:
            for handle in self._handles.values():
                ray.kill(handle)
            for group in self._groups:
                remove_placement_group(group)
            return
        kill_here(self._watched)

    async def gone(self) -> None:
        """Wait until names and devices of actors that were ended are free; what is stopped is killed for good."""
        if self._watch.head_is_lost:
            return
        for actor in self._watched:
            if actor.beat is not None:
                kill_on_node(actor.beat.node_id, (actor.beat.pid, *actor.beat.children))
        with self.waits.on("the ended actors to be gone", is_bounded=True), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while any(_exists(name) for name in self._handles):
                    await asyncio.sleep(0.2)


def _exists(name: str) -> bool:
    """Return whether an actor of that name is there."""
    try:
        _ray.get_actor(name)
    except ValueError:
        return False
    return True
