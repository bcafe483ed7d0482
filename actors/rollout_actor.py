"""Ray shell around one vLLM engine: leases tasks, answers them, takes new weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.admission import KVAdmission
from actors.config import RolloutConfig
from actors.engine import EngineDied, VLLMEngine, end_process
from actors.payload_file import payload_file
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import EngineLoad, Sampling
from actors.trajectory import Group, GroupMeta
from actors.weight_receiver import WeightReceipt
from actors.worker import GroupWorker
from curriculum.task import TaskLease


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
            leases=_CoordinatorLeases(coordinator, name),
            admission=KVAdmission(
                capacity_tokens=self._engine.capacity_tokens,
                block_tokens=self._engine.block_tokens,
                max_sequences=config.engine.max_num_seqs,
                max_prompt_tokens=max_model_len - config.max_response_tokens,
                max_response_tokens=config.max_response_tokens,
            ),
            config=config,
            run_seed=run_seed,
            decode=prompt.decode,
        )

    def __repr__(self) -> str:
        return getattr(self, "_name", "Rollout")

    async def ready(self) -> int:
        """Process id, once the engine can sample."""
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

    async def answer(self, lease: TaskLease, sampling: Sampling) -> tuple[GroupMeta | None, Group | None]:
        """Answers one task outside the curriculum; what misses the deadline is cut at once. (None, None) after `abort`.

        Raises:
            FaultyGroup: the engine answered nonsense.
        """
        try:
            return await self._worker.answer(lease, sampling) or (None, None)
        except EngineDied:
            end_process()

    async def abort(self) -> None:
        """Ends every answer and every wait for one; leases that were being answered stay held."""
        await self._worker.abort()

    async def load_weights(self, payload: NDArray[np.uint8], version: int) -> WeightReceipt:
        """Replaces the weights by a safetensors payload; running requests go on under the new ones, or end before, as
        `rollout.in_flight_update` says."""
        async with self._worker.updating():
            with payload_file(payload) as path:
                return await self._engine.load_weights(path, version)

    async def shutdown(self) -> None:
        """Ends the engine process."""
        self._engine.shutdown()


class _CoordinatorLeases:
    """Fulfils `Leases` with the coordinator actor."""

    def __init__(self, coordinator: str, holder: str) -> None:
        self._coordinator: Any = ray.get_actor(coordinator)
        self._holder = holder

    async def lease(self) -> TaskLease | None:
        return await self._coordinator.lease.remote(self._holder)

    async def requeue(self, lease_id: int) -> None:
        await self._coordinator.requeue.remote(lease_id, self._holder)
