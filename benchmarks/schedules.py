"""Schedules of sampling and training on simulated devices, replaying one length trace.

New weights make the engines stand still for the time of a sync; answers under way go on after it.

* `released_dapo`: sampling and training take turns; a fixed surplus of prompts is sampled, the first groups with a
  signal are trained on and the rest is thrown away (verl's DAPO recipe: 384 prompts for 128).
* `one_step_off`: a batch is trained while the next one is sampled, in rounds that replace groups without a signal and
  may ask for a surplus, which is thrown away; both end before the weights are sent.
* `bounded_lag`: the product's `LagBuffer` decides what is admitted and which batch leaves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from actors.trajectory import GroupMeta
from benchmarks.length_trace import Trace, TracedGroup
from benchmarks.simulated_devices import EnginePool, Speeds
from cluster.batches.lag_buffer import LagBuffer, policy_lag
from cluster.group import ScoredGroup
from curriculum.task import TaskLease
from reward.score import Score


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a schedule came to."""

    seconds: float = 0.0
    """Simulated, from the first prompt to the last update in the engines."""
    num_trained: int = 0
    num_generated: int = 0
    num_with_signal: int = 0
    """Those of the generated groups that could have been trained on."""
    max_policy_lag: int = 0
    """Largest age in updates of a group when it was trained on."""

    @property
    def groups_per_s(self) -> float:
        """Trained groups per simulated second."""
        return self.num_trained / self.seconds

    @property
    def used_share(self) -> float:
        """Trained groups among those with a signal: what good sampling was for."""
        return self.num_trained / self.num_with_signal


@dataclass(slots=True, kw_only=True)
class _Prompts:
    """The trace, over and over, with a count of what was taken."""

    groups: Iterable[TracedGroup]
    outcome: Outcome = field(default_factory=Outcome)

    @classmethod
    def of(cls, trace: Trace) -> Self:
        return cls(groups=itertools.cycle(trace))

    def take(self, count: int) -> list[TracedGroup]:
        taken = list(itertools.islice(self.groups, count))
        self.outcome.num_generated += len(taken)
        self.outcome.num_with_signal += sum(group.has_signal for group in taken)
        return taken


def released_dapo(trace: Trace, speeds: Speeds, *, batch_size: int, num_generated: int, num_steps: int) -> Outcome:
    """Turns of sampling `num_generated` groups and training on the first `batch_size` with a signal."""
    prompts, pool, now_s = _Prompts.of(trace), EnginePool(speeds), 0.0
    for _ in range(num_steps):
        batch: list[TracedGroup] = []
        while len(batch) < batch_size:
            sampled = prompts.take(num_generated)
            now_s = pool.drain(sampled, now_s)
            batch += [group for group in sampled if group.has_signal]
        now_s += speeds.train_seconds(batch[:batch_size]) + speeds.sync_s
    return replace(prompts.outcome, seconds=now_s, num_trained=num_steps * batch_size)


def one_step_off(trace: Trace, speeds: Speeds, *, batch_size: int, oversampling: float, num_steps: int) -> Outcome:
    """Trains on a batch while the next one is sampled; a barrier at the end of each step.

    A round samples `oversampling` times the groups that are missing, rounded up.
    """
    prompts, pool = _Prompts.of(trace), EnginePool(speeds)
    batch, now_s = _sample_in_rounds(prompts, pool, batch_size, oversampling, 0.0)
    for step in range(num_steps):
        trained_s = now_s + speeds.train_seconds(batch)
        if step < num_steps - 1:
            batch, now_s = _sample_in_rounds(prompts, pool, batch_size, oversampling, now_s)
        now_s = max(trained_s, now_s) + speeds.sync_s
    lag = min(1, num_steps - 1)
    return replace(prompts.outcome, seconds=now_s, num_trained=num_steps * batch_size, max_policy_lag=lag)


def _sample_in_rounds(
    prompts: _Prompts, pool: EnginePool, batch_size: int, oversampling: float, now_s: float
) -> tuple[list[TracedGroup], float]:
    batch: list[TracedGroup] = []
    while len(batch) < batch_size:
        sampled = prompts.take(math.ceil(oversampling * (batch_size - len(batch))))
        now_s = pool.drain(sampled, now_s)
        batch += [group for group in sampled if group.has_signal]
    return batch[:batch_size], now_s


def bounded_lag(
    trace: Trace, speeds: Speeds, *, batch_size: int, max_policy_lag: int, groups_in_flight: int, num_steps: int
) -> Outcome:
    """The product's admission and departure, `groups_in_flight` groups in the engines at most.

    Raises:
        RuntimeError: nothing is under way and no batch may leave.
    """
    return _BoundedLag(trace, speeds, batch_size, max_policy_lag, groups_in_flight, num_steps).run()


class _BoundedLag:
    """Events of `bounded_lag`: a group is complete, or the learner is."""

    def __init__(
        self, trace: Trace, speeds: Speeds, batch_size: int, max_policy_lag: int, groups_in_flight: int, num_steps: int
    ) -> None:
        self._prompts = _Prompts.of(trace)
        self._speeds = speeds
        self._pool = EnginePool(speeds)
        self._buffer = LagBuffer(batch_size=batch_size, max_policy_lag=max_policy_lag)
        self._groups_in_flight = groups_in_flight
        self._num_steps = num_steps
        self._version = 0
        self._now_s = 0.0
        self._trained_s = math.inf
        """When the learner is done; infinite while it waits."""
        self._sampled: dict[int, tuple[TracedGroup, int]] = {}
        """Lease id -> the group and the version at its admission, for all that are not trained on yet."""
        self._lease_ids = itertools.count()

    def run(self) -> Outcome:
        while self._version < self._num_steps:
            self._admit()
            if self._trained_s == math.inf and self._buffer.is_ready(self._buffer.num_missing):
                self._begin_training()
                self._admit()
            self._advance()
        return replace(self._prompts.outcome, seconds=self._now_s)

    def _admit(self) -> None:
        room = self._buffer.room(num_slots=self._groups_in_flight, remaining_steps=self._num_steps - self._version)
        admitted = dict(zip(itertools.islice(self._lease_ids, room), self._prompts.take(room), strict=True))
        self._buffer.admit(admitted)
        for lease_id, group in admitted.items():
            self._sampled[lease_id] = group, self._version
            self._pool.submit(lease_id, group, self._now_s)

    def _begin_training(self) -> None:
        batch = self._buffer.take(self._buffer.num_missing)
        outcome = self._prompts.outcome
        outcome.num_trained += len(batch)
        outcome.max_policy_lag = max([outcome.max_policy_lag, *[policy_lag(group, self._version) for group in batch]])
        groups = [self._sampled.pop(group.lease_id)[0] for group in batch]
        self._trained_s = self._now_s + self._speeds.train_seconds(groups)

    def _advance(self) -> None:
        """To the next event; a group that is complete when the learner is comes first."""
        self._now_s = min(self._pool.next_end_s, self._trained_s)
        if self._now_s == math.inf:
            raise RuntimeError(f"nothing is under way at version {self._version} and no batch may leave")
        if self._pool.next_end_s <= self._now_s:
            self._arrive(self._pool.pop())
            return
        self._pool.pause(self._now_s, self._speeds.sync_s)
        self._now_s += self._speeds.sync_s
        self._trained_s = math.inf
        self._version += 1
        self._buffer.advance(self._version)
        self._buffer.engines_at(self._version)

    def _arrive(self, lease_id: int) -> None:
        group, version = self._sampled[lease_id]
        outcome = self._buffer.arrive(_scored(lease_id, group, version), trainable=group.has_signal)
        if outcome is not None:
            del self._sampled[lease_id]


def _scored(lease_id: int, group: TracedGroup, version: int) -> ScoredGroup:
    """As much of a scored group as the buffer looks at."""
    first = 1.0 if group.has_signal else 0.0
    accuracies = (first, *[0.0] * (len(group.response_tokens) - 1))
    lease = TaskLease(lease_id=lease_id, task_id=str(lease_id), attempt=0, replayed=False, phase=0)
    meta = GroupMeta(
        lease=lease, data_source="trace", prompt_tokens=group.prompt_tokens, response_tokens=group.response_tokens,
        truncated=(False,) * len(accuracies), policy_version=version, num_bytes=0,
    )  # fmt: skip
    scores = tuple(
        Score(answer=None, rule=accuracy, judge=None, accuracy=accuracy, reward=accuracy, reason="from the trace")
        for accuracy in accuracies
    )
    return ScoredGroup(meta=meta, scores=scores, group=None)
