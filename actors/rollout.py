"""From a lease to a group: seeds, sampling settings, and checks of what an engine returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.faults import FaultKind, FaultyGroup
from actors.repetition import ends_in_repetition
from actors.trajectory import FinishReason, Group, Trajectory, VersionSpan
from curriculum.task import Task, TaskLease


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of sampling."""

    num_samples: int
    temperature: float
    """0 is greedy decoding."""
    top_p: float
    max_response_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer as an engine returns it; nothing is checked yet."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """[R] log-probability (nats) of each sampled token, after temperature and top-p."""
    finish_reason: str
    versions: Sequence[tuple[int, str]]
    """(first token, policy version) of each span of tokens that were sampled with the same weights, in order."""


class Engine(Protocol):
    """An inference engine, as a rollout uses it."""

    @property
    def policy_version(self) -> int:
        """Number of weight updates applied."""
        ...

    async def sample(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        seed: int,
        timeout_s: float | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Draw `sampling.num_samples` answers to one prompt.

        Args:
            prompt_ids: [P] tokens.
            sampling: settings of sampling.
            seed: of the first sample; sample i has seed + i.
            timeout_s: seconds after which unfinished answers end as they are, with finish reason "deadline".
            on_finished: called with the number of tokens of every answer that ends by itself, when it ends.
        """
        ...


def sampling_seed(run_seed: int, task_id: str, attempt: int) -> int:
    """Return a 31-bit seed for the samples of one lease; the engine uses seed + i for sample i of the group."""
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
    timeout_s: float | None = None,
    on_finished: Callable[[int], None] | None = None,
) -> Group:
    """Sample the G answers of one lease.

    Args:
        engine: samples them.
        task: the task that the lease names.
        lease: the lease.
        sampling: settings of sampling.
        run_seed: seed of the run.
        engine_name: name of the engine, for logs and errors.
        timeout_s: seconds after which unfinished answers are cut, with finish reason `DEADLINE`; None cuts none.
        on_finished: called with the number of tokens of every answer that ends by itself, when it ends.

    Raises:
        FaultyGroup: the engine returned something that must not be trained on.
    """
    seed = sampling_seed(run_seed, task.task_id, lease.attempt)
    version_at_start = engine.policy_version
    samples = await engine.sample(
        task.prompt_ids.tolist(), sampling, seed=seed, timeout_s=timeout_s, on_finished=on_finished
    )
    fault = _missing(samples, sampling.num_samples) or _fault(samples, engine.policy_version)
    if fault:
        kind, detail = fault
        raise FaultyGroup(kind, detail, lease.lease_id, task.task_id, engine_name, lease.num_requeues)
    return Group(
        task=task,
        lease=lease,
        trajectories=tuple(_trajectory(sample, version_at_start) for sample in samples),
        temperature=sampling.temperature,
        max_response_tokens=sampling.max_response_tokens,
        engine=engine_name,
        top_p=sampling.top_p,
    )


_Fault = tuple[FaultKind, str]
_FINISH_REASONS = frozenset(str(reason) for reason in FinishReason)


def _missing(samples: Sequence[Sample], num_samples: int) -> _Fault | None:
    if len(samples) == num_samples:
        return None
    return FaultKind.MISSING_SAMPLES, f"returned {len(samples)} of {num_samples} samples"


def _fault(samples: Sequence[Sample], newest_version: int) -> _Fault | None:
    """Return kind and description of the first fault; None without a fault."""
    for index, sample in enumerate(samples):
        found = _sample_fault(sample) or _version_fault(sample, newest_version)
        if found:
            kind, detail = found
            return kind, f"returned sample {index} {detail}"
    return None


def _sample_fault(sample: Sample) -> _Fault | None:
    num_tokens, num_logprobs = len(sample.token_ids), len(sample.logprobs)
    if sample.finish_reason not in _FINISH_REASONS:
        return FaultKind.UNKNOWN_FINISH, f"with finish_reason={sample.finish_reason!r}"
    if num_tokens == 0 and not FinishReason(sample.finish_reason).is_cut:
        return FaultKind.EMPTY_ANSWER, "without a token"
    if num_tokens != num_logprobs:
        return FaultKind.MISSING_LOGPROBS, f"with {num_tokens} response tokens but {num_logprobs} log-probabilities"
    return None


def _version_fault(sample: Sample, newest_version: int) -> _Fault | None:
    starts = [start for start, _ in sample.versions]
    num_tokens = len(sample.token_ids)
    if num_tokens and (starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= num_tokens):
        return FaultKind.UNREADABLE_VERSION, f"of {num_tokens} tokens with policy versions from tokens {starts} on"
    for _, version in sample.versions:
        if not version.isdecimal():
            return FaultKind.UNREADABLE_VERSION, f"with policy version {version!r}"
        if int(version) > newest_version:
            return FaultKind.FUTURE_VERSION, f"with policy version {version}, but was sent {newest_version} at most"
    return None


def _trajectory(sample: Sample, version_at_start: int) -> Trajectory:
    ids: NDArray[np.int32] = np.asarray(sample.token_ids, dtype=np.int32)
    spans = sample.versions if len(ids) else [(0, str(version_at_start))]
    return Trajectory(
        response_ids=ids,
        rollout_logprobs=np.asarray(sample.logprobs, dtype=np.float32),
        finish_reason=_finish_reason(sample),
        versions=tuple(VersionSpan(start=start, version=int(version)) for start, version in spans),
    )


def _finish_reason(sample: Sample) -> FinishReason:
    reason = FinishReason(sample.finish_reason)
    repeats = reason is FinishReason.LENGTH and ends_in_repetition(sample.token_ids)
    return FinishReason.REPETITION if repeats else reason
