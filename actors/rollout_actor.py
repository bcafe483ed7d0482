"""Ray shell around one vLLM engine: leases tasks, answers them, loads new weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.admission import KVAdmission
from actors.config import RolloutConfig, YarnConfig
from actors.coordinator_leases import CoordinatorLeases
from actors.engine import VLLMEngine, end_process
from actors.faults import EngineDied
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from actors.trajectory import Group, GroupMeta
from actors.weights.update import HostCopy, WeightReceipt, WeightUpdate
from actors.worker import GroupWorker
from curriculum.heartbeat import Heartbeat, Lifeline, Pulse
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskTable

_ray: Any = ray  # where its declarations have no complete types


class RolloutActor:
    """One engine that leases its own tasks; see `GroupWorker`.

    Consumes: leases of the coordinator.  Waits for: room in the engine, then the engine.  Unblocked by: answers that
    end, `open_batch` of the coordinator, and `abort`.
    If the engine process dies, the actor ends its own process, so that Ray restarts it with a new engine.
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
        yarn: YarnConfig | None = None,
        secrets: Mapping[str, str],
        lifeline: Lifeline | None = None,
    ) -> None:
        self._name = name
        os.environ.update(secrets)
        self._pulse = Pulse(lifeline)
        coordinator_actor = _ray.get_actor(coordinator)
        # not an argument: Ray warns of actors that restart with arguments in the object store
        (columns,) = _ray.get(coordinator_actor.task_columns.remote())
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
            fp32_logits=True,
            yarn=yarn,
        )
        self._worker = GroupWorker(
            name=name,
            engine=self._engine,
            leases=CoordinatorLeases(coordinator_actor, name),
            admission=KVAdmission(
                capacity_tokens=self._engine.capacity_tokens,
                block_tokens=self._engine.block_tokens,
                max_sequences=config.engine.max_num_seqs,
                max_prompt_tokens=max_model_len - config.max_response_tokens,
                max_response_tokens=config.max_response_tokens,
            ),
            config=config,
            tasks=TaskTable(_ray.get(columns)),
            run_seed=run_seed,
        )

    def __repr__(self) -> str:
        return getattr(self, "_name", "Rollout")

    async def ready(self) -> int:
        """Return the process id; if the engine process died, end this one."""
        try:
            self._engine.check_alive()
        except EngineDied:
            end_process()
        return os.getpid()

    async def heartbeat(self) -> Heartbeat:
        """Say what the engine does; if its process died, end this one."""
        try:
            return self._engine.beat(self._pulse, await self.node_id())
        except EngineDied:
            end_process()

    async def num_slots(self) -> int:
        """Return the number of groups that the engine is expected to hold at a time."""
        return self._worker.num_slots

    async def num_prefilled_tokens(self) -> int:
        """Return the number of prompt tokens computed since the start, without those found in the prefix cache."""
        return self._engine.num_prefilled_tokens

    async def next_group(self, sampling: Sampling) -> tuple[GroupMeta | None, int, Group | None]:
        """Lease a task as soon as the engine has room for a group, and answer it.

        The caller owns all three results, so they outlive this process.

        Returns:
            what the driver needs to know of the group, the current `num_slots`, and the group; None for the first and
            the last when the coordinator has no task to give, or after `abort`.

        Raises:
            DeadlineMissed: the group took too long; its lease was requeued.
            FaultyGroup: the answers of the engine cannot be used; the lease was requeued, unless the error is final.
        """
        try:
            group = await self._worker.next_group(sampling)
        except EngineDied:
            end_process()
        return _meta(group), self._worker.num_slots, group

    async def answer(self, task: Task, lease: TaskLease, sampling: Sampling) -> tuple[GroupMeta | None, Group | None]:
        """Answer one task outside the curriculum; answers that miss the deadline are cut the first time.

        Returns:
            what the driver needs to know of the group, and the group; (None, None) after `abort`.

        Raises:
            FaultyGroup: the answers of the engine cannot be used.
        """
        try:
            group = await self._worker.answer(task, lease, sampling)
        except EngineDied:
            end_process()
        return _meta(group), group

    async def abort(self) -> None:
        """End every answer and every wait for one; leases that were being answered stay held."""
        await self._worker.abort()

    async def node_id(self) -> str:
        """Return Ray's id of the host."""
        return ray.get_runtime_context().get_node_id()

    async def load_weights(self, update: WeightUpdate) -> WeightReceipt:
        """Replace the weights; running requests continue with the new ones."""
        local = self._copy.write(update)
        try:
            receipt = await self._engine.load_weights(local)
        except EngineDied:
            end_process()
        return replace(receipt, num_travelling_bytes=update.num_travelling_bytes)

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Return [T - 1] the log-probability (nats, temperature 1) of each of the T tokens but the first."""
        try:
            return await self._engine.score(token_ids)
        except EngineDied:
            end_process()

    async def decoding_gap(self, token_ids: Sequence[int]) -> float:
        """Return the mean difference (nats) between the scores of sampled tokens and of the same in a prompt."""
        try:
            return await self._engine.decoding_gap(token_ids)
        except EngineDied:
            end_process()


def _meta(group: Group | None) -> GroupMeta | None:
    return None if group is None else GroupMeta.of(group)
