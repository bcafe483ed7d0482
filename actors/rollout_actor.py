"""Ray shell around one vLLM engine: leases tasks, answers them, takes new weights."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from actors.config import RolloutConfig
from actors.engine import EngineDied, VLLMEngine, end_process
from actors.lease_desk import LeaseDesk
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling, sample_group
from actors.trajectory import Group, GroupMeta
from actors.weight_delta import HostCopy, WeightPayload
from actors.weight_update import WeightReceipt, WeightUpdate
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskColumns, TaskTable


class RolloutActor:
    """One engine that pulls its own work.

    Consumes: leases of the coordinator.  Waits for: the engine.  Unblocked by: `open_batch` of the coordinator.
    If the engine process dies, the actor ends its own process, so that Ray restarts it with a fresh engine.
    """

    def __init__(
        self,
        *,
        name: str,
        model_path: str,
        config: RolloutConfig,
        coordinator: str,
        tasks: TaskColumns,
        max_model_len: int,
        run_seed: int,
        engine_seed: int,
        on_gpu: bool,
        trust_remote_code: bool,
    ) -> None:
        self._name = name
        coordinator_actor: Any = ray.get_actor(coordinator)
        self._leases = LeaseDesk(lambda count: coordinator_actor.lease_up_to.remote(name, count))
        self._tasks = TaskTable(tasks)
        self._run_seed = run_seed
        self._copy = HostCopy()
        prompt = ChatPrompt(load_tokenizer(model_path, trust_remote_code=trust_remote_code))
        self._engine = VLLMEngine(
            model_path,
            config.engine,
            max_model_len=max_model_len,
            stop_token_ids=prompt.stop_token_ids,
            seed=engine_seed,
            on_gpu=on_gpu,
            trust_remote_code=trust_remote_code,
        )

    def __repr__(self) -> str:
        return getattr(self, "_name", "Rollout")

    async def ready(self) -> int:
        """Process id, once the engine can sample."""
        return os.getpid()

    async def next_group(self, sampling: Sampling) -> tuple[GroupMeta | None, Group | None]:
        """Leases a task and answers it; (None, None) when the coordinator has no task to give.

        The caller owns both results, so they outlive this process.
        """
        lease = await self._leases.next()
        return (None, None) if lease is None else await self.answer(self._tasks[lease.task_id], lease, sampling)

    async def answer(self, task: Task, lease: TaskLease, sampling: Sampling) -> tuple[GroupMeta, Group]:
        """Answers one task."""
        start = time.monotonic()
        try:
            group: Group = await sample_group(
                self._engine,
                task,
                lease,
                sampling,
                run_seed=self._run_seed,
                engine_name=self._name,
            )
        except EngineDied:
            end_process()
        return GroupMeta.of(group, time.monotonic() - start), group

    async def node_id(self) -> str:
        """Of the host, as Ray calls it."""
        return ray.get_runtime_context().get_node_id()

    async def load_weights(self, weights: WeightUpdate | WeightPayload) -> WeightReceipt:
        """Replaces the weights; running requests go on under the new ones."""
        update = self._copy.write(weights) if isinstance(weights, WeightPayload) else weights
        try:
            return await self._engine.load_weights(update)
        except EngineDied:
            end_process()

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """[T - 1] log-probability (nats, temperature 1) of each of the T tokens after the first."""
        try:
            return await self._engine.score(token_ids)
        except EngineDied:
            end_process()

    async def shutdown(self) -> None:
        """Ends the engine process."""
        self._engine.shutdown()
