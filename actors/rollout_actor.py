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
from actors.engine import VLLMEngine
from actors.engine_start import end_process
from actors.faults import EngineDied
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from actors.trajectory import Group, GroupMeta
from actors.weights.update import HostCopy, WeightReceipt, WeightUpdate
from actors.worker import GroupWorker
from curriculum.heartbeat import START, Heartbeat, Lifeline, Pulse
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskTable

_ray: Any = ray  # where its declarations have no complete types


class RolloutActor:
    """One engine that leases its own tasks; see `GroupWorker`.

    Consumes: leases of the coordinator.  Waits for: room in the engine, then the engine.  Unblocked by: answers that
    end, `open_batch` of the coordinator, and `abort`.
    If the engine process dies, the actor ends its own process, so that Ray restarts it with a new engine.
    An engine that shares its GPU is loaded by `ready`, when its turn has come, and never by a restart alone.
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
        loads_at_once: bool = True,
        sleeps: bool = False,
        lifeline: Lifeline | None = None,
    ) -> None:
        self._name = name
        os.environ.update(secrets)
        self._pulse = Pulse(lifeline)
        self._coordinator = _ray.get_actor(coordinator)
        self._copy = HostCopy()
        self._model_path = model_path
        self._config = config
        self._max_model_len = max_model_len
        self._run_seed = run_seed
        self._engine_seed = engine_seed
        self._on_gpu = on_gpu
        self._trust_remote_code = trust_remote_code
        self._yarn = yarn
        self._sleeps = sleeps
        self._loaded: tuple[VLLMEngine, GroupWorker] | None = self._load() if loads_at_once else None

    def __repr__(self) -> str:
        return getattr(self, "_name", "Rollout")

    async def ready(self) -> int:
        """Return the process id, once the engine is loaded; if the engine process died, end this one."""
        if self._loaded is None:
            with self._pulse.doing(START):
                self._loaded = self._load()
        try:
            self._engine.check_alive()
        except EngineDied:
            end_process()
        return os.getpid()

    async def heartbeat(self) -> Heartbeat:
        """Say what the engine does; if its process died, end this one."""
        if self._loaded is None:
            return self._pulse.beat(await self.node_id(), doing=START)
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
        if self._loaded is not None:
            await self._worker.abort()

    async def sleep(self) -> None:
        """Give the memory of the GPU back; an engine that is not loaded has none."""
        if self._loaded is not None:
            try:
                await self._engine.sleep()
            except EngineDied:
                end_process()

    async def wake_up(self) -> bool:
        """Take the memory of the GPU again, with the weights from before; return false where no engine is loaded.

        That is so when this process was restarted meanwhile: `ready` loads the engine.
        """
        if self._loaded is None:
            return False
        try:
            await self._engine.wake_up()
        except EngineDied:
            end_process()
        return True

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

    @property
    def _engine(self) -> VLLMEngine:
        return self._parts()[0]

    @property
    def _worker(self) -> GroupWorker:
        return self._parts()[1]

    def _parts(self) -> tuple[VLLMEngine, GroupWorker]:
        """Return engine and worker; without them end this process, so that the driver hears of the restart."""
        if self._loaded is None:
            end_process("this actor was restarted and its engine is not loaded yet")
        return self._loaded

    def _load(self) -> tuple[VLLMEngine, GroupWorker]:
        """Load the model; block until the engine can sample."""
        # not an argument: Ray warns of actors that restart with arguments in the object store
        (columns,) = _ray.get(self._coordinator.task_columns.remote())
        config = self._config
        prompt = ChatPrompt(load_tokenizer(self._model_path, trust_remote_code=self._trust_remote_code))
        engine = VLLMEngine(
            self._model_path,
            config.engine,
            max_model_len=self._max_model_len,
            stop_token_ids=prompt.stop_token_ids,
            seed=self._engine_seed,
            on_gpu=self._on_gpu,
            trust_remote_code=self._trust_remote_code,
            fp32_logits=True,
            yarn=self._yarn,
            sleeps=self._sleeps,
        )
        worker = GroupWorker(
            name=self._name,
            engine=engine,
            leases=CoordinatorLeases(self._coordinator, self._name),
            admission=KVAdmission(
                capacity_tokens=engine.capacity_tokens,
                block_tokens=engine.block_tokens,
                max_sequences=config.engine.max_num_seqs,
                max_prompt_tokens=self._max_model_len - config.max_response_tokens,
                max_response_tokens=config.max_response_tokens,
            ),
            config=config,
            tasks=TaskTable(_ray.get(columns)),
            run_seed=self._run_seed,
        )
        return engine, worker


def _meta(group: Group | None) -> GroupMeta | None:
    return None if group is None else GroupMeta.of(group)
