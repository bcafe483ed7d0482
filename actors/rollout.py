"""From a lease to a group: seeds, sampling settings, and the checks on what an engine returns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.trajectory import FinishReason, Group, Trajectory
from curriculum.task import Task, TaskLease


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    num_samples: int
    temperature: float
    """0 is greedy decoding."""
    top_p: float
    max_response_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer as an engine returns it."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """[R] log-probability (nats) of each sampled token, after temperature and top-p."""
    finish_reason: str


class Engine(Protocol):
    """What a rollout needs of an inference engine."""

    @property
    def policy_version(self) -> int:
        """Number of weight updates applied."""
        ...

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, *, seed: int) -> list[Sample]:
        """Draws `sampling.num_samples` answers to one prompt."""
        ...


def sampling_seed(run_seed: int, task_id: str, attempt: int) -> int:
    """A 31-bit seed for the samples of one lease; sample i of the group adds i inside the engine."""
    digest = hashlib.sha256(f"{run_seed}/{task_id}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


async def sample_group(
    engine: Engine,
    task: Task,
    lease: TaskLease,
    sampling: Sampling,
    *,
    run_seed: int,
    engine_name: str,
) -> Group:
    """Samples the G answers of one lease, which names `task`.

    Raises:
        ValueError: the engine returned fewer answers than asked for, or an answer without tokens or log-probabilities.
    """
    version = engine.policy_version
    seed = sampling_seed(run_seed, task.task_id, lease.attempt)
    samples = await engine.sample(task.prompt_ids.tolist(), sampling, seed=seed)
    if len(samples) != sampling.num_samples:
        raise ValueError(
            f"task {task.task_id}: {engine_name} returned {len(samples)} of {sampling.num_samples} samples; "
            "the group is sampled again after the engine restarts"
        )
    return Group(
        lease_id=lease.lease_id,
        task_id=task.task_id,
        data_source=task.data_source,
        question=task.question,
        answers=task.answers,
        prompt_ids=task.prompt_ids,
        trajectories=tuple(_trajectory(sample, version) for sample in samples),
        phase=lease.phase,
        replayed=lease.replayed,
        temperature=sampling.temperature,
        engine=engine_name,
        top_p=sampling.top_p,
    )


def _trajectory(sample: Sample, version: int) -> Trajectory:
    ids: NDArray[np.int32] = np.asarray(sample.token_ids, dtype=np.int32)
    return Trajectory(
        response_ids=ids,
        rollout_logprobs=np.asarray(sample.logprobs, dtype=np.float32),
        finish_reason=FinishReason(sample.finish_reason),
        policy_version=version,
    )
