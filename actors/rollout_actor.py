"""Ray shell around one vLLM engine: leases tasks, answers them, takes new weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.admission import KVAdmission
from actors.config import RolloutConfig
from actors.engine import EngineDied, VLLMEngine, end_process
from actors.lease_batcher import LeaseBatcher
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import EngineLoad, Sampling
from actors.trajectory import Group, GroupMeta
from actors.weights.update import HostCopy, WeightReceipt, WeightUpdate
from actors.worker import GroupWorker
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskTable


class RolloutActor:
    """One engine that pulls its own work; see `GroupWorker`.

    Consumes: leases of the coordinator.  Waits for: room in the engine, then the engine.  Unblocked by: answers that
    end, `open_batch` of the coordinator, and `abort`.
    If the engine process dies, the actor ends its own process, so that Ray restarts it with a fresh engine.
    """

    def __init__(
        self,
        *,
        name: str,
        model_path: str,
        config: RolloutConfig,
        coordinator: str,
        max_model_len: int,
        run_seed: int,
        engine_seed: int,
        on_gpu: bool,
        trust_remote_code: bool,
    ) -> None:
        self._name = name
        coordinator_actor: Any = ray.get_actor(coordinator)
        # asked for here and not handed in: Ray warns of actors that restart with arguments in the object store
        (columns,) = ray.get(coordinator_actor.task_columns.remote())
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
        self._worker = GroupWorker(
            name=name,
            engine=self._engine,
            leases=_CoordinatorLeases(coordinator_actor, name),
            admission=KVAdmission(
                capacity_tokens=self._engine.capacity_tokens,
                block_tokens=self._engine.block_tokens,
                max_sequences=config.engine.max_num_seqs,
                max_prompt_tokens=max_model_len - config.max_response_tokens,
                max_response_tokens=config.max_response_tokens,
            ),
            config=config,
            tasks=TaskTable(ray.get(columns)),
            run_seed=run_seed,
        )

    def __repr__(self) -> str:
        return getattr(self, "_name", "Rollout")

    async def ready(self) -> int:
        """Process id, while the engine can sample."""
        try:
            self._engine.check_alive()
        except EngineDied:
            end_process()
        return os.getpid()

    async def load(self) -> EngineLoad:
        """What the engine works on."""
        return EngineLoad(
            num_slots=self._worker.num_slots,
            num_running=self._engine.num_running,
            num_prefilled_tokens=self._engine.num_prefilled_tokens,
        )

    async def num_running(self) -> int:
        """Answers that the engine has not finished."""
        return self._engine.num_running

    async def next_group(self, sampling: Sampling) -> tuple[GroupMeta | None, Group | None]:
        """Leases a task as soon as the engine has room for a group and answers it; (None, None) when the coordinator
        has no task to give, or after `abort`.

        The caller owns both results, so they outlive this process.

        Raises:
            DeadlineMissed: the group took too long; its lease waits again.
            FaultyGroup: the engine answered nonsense; likewise, unless the error is final.
        """
        try:
            return await self._worker.next_group(sampling) or (None, None)
        except EngineDied:
            end_process()

    async def answer(self, task: Task, lease: TaskLease, sampling: Sampling) -> tuple[GroupMeta | None, Group | None]:
        """Answers one task outside the curriculum; what misses the deadline is cut at once. (None, None) after `abort`.

        Raises:
            FaultyGroup: the engine answered nonsense.
        """
        try:
            return await self._worker.answer(task, lease, sampling) or (None, None)
        except EngineDied:
            end_process()

    async def abort(self) -> None:
        """Ends every answer and every wait for one; leases that were being answered stay held."""
        await self._worker.abort()

    async def node_id(self) -> str:
        """Of the host, as Ray calls it."""
        return ray.get_runtime_context().get_node_id()

    async def load_weights(self, update: WeightUpdate) -> WeightReceipt:
        """Replace the weights; running requests go on under the new ones, or end before, as
        `rollout.in_flight_update` says."""
        local = self._copy.write(update)
        try:
            async with self._worker.updating():
                receipt = await self._engine.load_weights(local)
        except EngineDied:
            end_process()
        return replace(receipt, num_travelling_bytes=update.num_travelling_bytes)

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """[T - 1] log-probability (nats, temperature 1) of each of the T tokens after the first."""
        try:
            return await self._engine.score(token_ids)
        except EngineDied:
            end_process()

    async def shutdown(self) -> None:
        """Ends the engine process."""
        self._engine.shutdown()


class _CoordinatorLeases:
    """Fulfils `Leases` with the coordinator actor."""

    def __init__(self, coordinator: Any, holder: str) -> None:
        self._coordinator = coordinator
        self._holder = holder
        self._batcher = LeaseBatcher(lambda count: self._coordinator.lease_up_to.remote(holder, count))

    async def lease(self) -> TaskLease | None:
        return await self._batcher.next()

    async def requeue(self, lease_id: int) -> None:
        await self._coordinator.requeue.remote(lease_id, self._holder)
